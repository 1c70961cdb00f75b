/* What the files of this folder share. */
#ifndef CUPOLA_INTERNAL_H
#define CUPOLA_INTERNAL_H

#include "cupola.h"

#define FORMAT_VERSION 11 /* of artifacts: runtime/artifact/manifest.py */
#define ALIGNMENT 64     /* of what kernels take: runtime/artifact/plan.py */

/* JSON: a tree of values, of which the parser owns all. */
typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_LIST, JSON_OBJECT } json_kind;
typedef struct json {
  json_kind kind;
  double number;
  const char *text; /* of a string */
  const char *key;  /* within an object */
  struct json *first, *next;
} json;
typedef struct json_document json_document;

json_document *json_parse(const char *text, size_t length, char *message); /* copies the text */
void json_free(json_document *document);
const json *json_root(const json_document *document);
const json *json_get(const json *object, const char *key); /* NULL if there is none, or it is no object */
const char *json_text(const json *object, const char *key); /* "" if it is no string */
int64_t json_number(const json *object, const char *key, int64_t otherwise);

/* The system (system_*.c). */
typedef struct {
  const char *data;
  size_t length;
  void *handle;
} file_map;
int map_file(const char *path, file_map *map); /* 0, or -1 */
void unmap_file(file_map *map);
void *open_library(const char *path, char *message);
void *library_symbol(void *library, const char *name);
int32_t count_cores(void);
enum { MOST_CORES = 1024 };
/* How many threads there should be, `wanted` or as many as there are fast cores, and the cores to run them on; none are any. `root` is the
   folder whose sys is read; `cores` has room for MOST_CORES. */
int32_t choose_cores(const char *root, int32_t wanted, int32_t *cores, int32_t *num_cores);
const char *system_name(void);                /* linux, android, macos, windows */
const char *architecture_name(void);          /* as LLVM has it */
int has_feature(const char *name);            /* in Linux's words */
int request_features(const char *const *names, int count); /* asks for those that the system grants on request; whether it does */

/* Memory that begins at a multiple of ALIGNMENT, of zeros, with room for a vector behind it. */
void *take_zeros(size_t length);
void give_back(void *memory);

/* Sizes: a number, a name or `name + number`; of names of which `sizes` has the values. -1 if it is something else. */
typedef struct {
  const char *const *names;
  const int64_t *values;
  int count;
} size_table;
int64_t size_value(const json *size, const size_table *sizes);
int64_t tensor_bytes(const json *tensor, const size_table *sizes); /* of a TensorSpec; -1 if it can't be told */

#define FAIL(message, ...) ((message) ? (void)snprintf((message), CUPOLA_MESSAGE_BYTES, __VA_ARGS__) : (void)0)

typedef int32_t (*run_function)(int64_t times, const int64_t *dims, void *const *inputs, void *workspace, int64_t *clock);
typedef int64_t (*workspace_function)(const int64_t *dims);

/* What stands in for an input of `forward`. */
typedef enum { GIVEN_WEIGHT, GIVEN_POOL, GIVEN_OUTPUT, GIVEN_STEP } input_kind;
typedef struct {
  const json *spec;
  input_kind kind;
  const void *weight;
} model_input;

enum { MAX_DIMS = 64, MAX_FILES = 1024 };

struct cupola_model {
  json_document *manifest, *plan;
  char target[128];
  void *library;
  run_function run;
  workspace_function workspace_bytes;
  void (*set_power_saver)(int32_t is_on); /* NULL in older libraries */
  const json *forward;
  model_input *inputs;
  int num_inputs, num_dims, num_files, has_state;
  const char *dims[MAX_DIMS];
  int64_t block_size;
  int32_t vocabulary, context;
  const char *file_names[MAX_FILES];
  file_map files[MAX_FILES];
  void **copies; /* of weights that were not aligned */
  int num_copies;
};

#endif
