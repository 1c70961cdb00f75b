/* An artifact's folder: which of its libraries this machine runs, and what `forward` takes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MAX_PATH_BYTES = 4096, MAX_FEATURES = 64, ABI = 1 };

static const struct {
  const char *name;
  int bytes;
} dtypes[] = {{"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"float8_e4m3fn", 1}, {"int64", 8}, {"int32", 4},
              {"uint32", 4},  {"int8", 1},    {"uint8", 1},    {"bool", 1}};

void *take_zeros(size_t length) {
  char *whole = calloc(1, length + 2 * ALIGNMENT + sizeof(void *));
  if (!whole) return NULL;
  void **memory = (void **)(((uintptr_t)whole + sizeof(void *) + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
  memory[-1] = whole;
  return memory;
}

void give_back(void *memory) {
  if (memory) free(((void **)memory)[-1]);
}

int64_t size_value(const json *size, const size_table *sizes) {
  if (size->kind == JSON_NUMBER) return (int64_t)size->number;
  if (size->kind != JSON_STRING) return -1;
  const char *plus = strstr(size->text, " + ");
  size_t length = plus ? (size_t)(plus - size->text) : strlen(size->text);
  for (int i = 0; i < sizes->count; ++i)
    if (strlen(sizes->names[i]) == length && !memcmp(sizes->names[i], size->text, length))
      return sizes->values[i] + (plus ? strtoll(plus + 3, NULL, 10) : 0);
  return -1;
}

int64_t tensor_bytes(const json *tensor, const size_table *sizes) {
  const json *shape = json_get(tensor, "shape");
  int64_t bytes = -1;
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; ++i)
    if (!strcmp(dtypes[i].name, json_text(tensor, "dtype"))) bytes = dtypes[i].bytes;
  for (const json *size = shape ? shape->first : NULL; size && bytes >= 0; size = size->next) {
    int64_t value = size_value(size, sizes);
    bytes = value < 0 || (value && bytes > ((int64_t)1 << 50) / value) ? -1 : bytes * value;
  }
  return shape ? bytes : -1;
}

static json_document *read_json(const char *folder, const char *name, char *message) {
  char path[MAX_PATH_BYTES], problem[CUPOLA_MESSAGE_BYTES];
  file_map map = {0};
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path || map_file(path, &map)) {
    FAIL(message, "%s/%s: can't be read", folder, name);
    return NULL;
  }
  json_document *document = json_parse(map.data, map.length, problem);
  if (!document) FAIL(message, "%s: %s", path, problem);
  unmap_file(&map);
  return document;
}

/* The system that a triple of LLVM's names. */
static const char *system_of(const char *triple) {
  static const char *const words[][2] = {{"android", "android"}, {"linux", "linux"}, {"macos", "macos"}, {"darwin", "macos"}, {"windows", "windows"}};
  for (size_t i = 0; i < sizeof words / sizeof *words; ++i)
    if (strstr(triple, words[i][0])) return words[i][1];
  return "";
}

/* Why this machine can't run a library; "" if it can. */
static const char *fault_of(const json *target, char *fault) {
  const char *triple = json_text(target, "triple"), *names[MAX_FEATURES];
  const json *features = json_get(target, "features");
  size_t length = strlen(architecture_name());
  int count = 0;
  if (strcmp(json_text(target, "kind"), "cpu")) return "is for a GPU";
  if (strncmp(triple, architecture_name(), length) || triple[length] != '-' || strcmp(system_of(triple), system_name())) {
    snprintf(fault, CUPOLA_MESSAGE_BYTES, "is for %s", triple);
    return fault;
  }
  for (const json *feature = features ? features->first : NULL; feature; feature = feature->next) {
    if (feature->kind != JSON_STRING || count == MAX_FEATURES) return "wants what is unknown here";
    names[count++] = feature->text;
    if (has_feature(feature->text)) continue;
    snprintf(fault, CUPOLA_MESSAGE_BYTES, "wants %s", feature->text);
    return fault;
  }
  return request_features(names, count) ? "" : "wants registers that this system does not grant";
}

static const json *choose_library(const json *manifest, const char *folder, char *message) {
  char faults[CUPOLA_MESSAGE_BYTES] = "", fault[CUPOLA_MESSAGE_BYTES];
  const json *libraries = json_get(manifest, "libraries");
  for (const json *library = libraries ? libraries->first : NULL; library; library = library->next) {
    const json *target = json_get(library, "target");
    const char *why = fault_of(target, fault);
    if (!*why) return library;
    size_t used = strlen(faults);
    snprintf(faults + used, sizeof faults - used, "%s%s %s", used ? "; " : "", json_text(target, "name"), why);
  }
  FAIL(message, "%s: no library runs on %s-%s (%s)", folder, architecture_name(), system_name(), faults);
  return NULL;
}

static const json *by_name(const json *list, const char *name) {
  for (const json *item = list ? list->first : NULL; item; item = item->next)
    if (!strcmp(json_text(item, "name"), name)) return item;
  return NULL;
}

static const file_map *file_of(cupola_model *m, const char *folder, const char *name) {
  char path[MAX_PATH_BYTES];
  for (int i = 0; i < m->num_files; ++i)
    if (!strcmp(m->file_names[i], name)) return &m->files[i];
  if (m->num_files == MAX_FILES || snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return NULL;
  if (map_file(path, &m->files[m->num_files])) return NULL;
  m->file_names[m->num_files] = name;
  return &m->files[m->num_files++];
}

/* Where a weight lies: in the mapped file, or in an aligned copy. */
static const void *place_weight(cupola_model *m, const char *folder, const json *weight, char *message) {
  const size_table none = {NULL, NULL, 0};
  const char *name = json_text(weight, "file");
  int64_t bytes = tensor_bytes(weight, &none), offset = json_number(weight, "offset", -1);
  const file_map *file = file_of(m, folder, name);
  if (!file || bytes < 0 || offset < 0 || offset > (int64_t)file->length || bytes > (int64_t)file->length - offset) {
    FAIL(message, "%s/%s: %s", folder, name, file ? "is too short" : "can't be read");
    return NULL;
  }
  const char *data = file->data + offset;
  if ((uintptr_t)data % ALIGNMENT == 0) return data;
  void *copy = take_zeros((size_t)bytes);
  if (!copy) {
    FAIL(message, "no memory is left");
    return NULL;
  }
  m->copies[m->num_copies++] = copy;
  return memcpy(copy, data, (size_t)bytes);
}

/* Whether a name such as k_pages.0 is one of a group's pools. */
static int is_pool(const json *groups, const char *name) {
  int number = 0;
  const char *dot = strrchr(name, '.');
  for (const json *group = groups ? groups->first : NULL; group && dot; group = group->next, ++number) {
    if (atoi(dot + 1) != number) continue;
    const json *pools = json_get(group, "pools");
    for (const json *pool = pools ? pools->first : NULL; pool; pool = pool->next) {
      const char *own = json_text(pool, "name");
      if (strlen(own) == (size_t)(dot - name) && !memcmp(own, name, strlen(own))) return 1;
    }
  }
  return 0;
}

static int is_step_input(const char *name) {
  static const char *const known[] = {"tokens", "positions", "query_starts", "context_lens", "logit_rows", "draws", "slots.", "block_tables.", "state_slots."};
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
    size_t length = strlen(known[i]);
    if (known[i][length - 1] == '.' ? !strncmp(name, known[i], length) : !strcmp(name, known[i])) return 1;
  }
  return 0;
}

static int bind_inputs(cupola_model *m, const char *folder, char *message) {
  const json *manifest = json_root(m->manifest), *inputs = json_get(m->forward, "inputs"), *weights = json_get(manifest, "weights");
  const json *groups = json_get(json_get(manifest, "kv"), "groups"), *outputs = json_get(m->forward, "outputs");
  int count = 0;
  for (const json *input = inputs ? inputs->first : NULL; input; input = input->next) ++count;
  m->inputs = calloc((size_t)count + 1, sizeof *m->inputs);
  m->copies = calloc((size_t)count + 1, sizeof *m->copies);
  if (!m->inputs || !m->copies) return FAIL(message, "no memory is left"), -1;
  for (const json *input = inputs ? inputs->first : NULL; input; input = input->next) {
    const char *name = json_text(input, "name");
    const json *weight = by_name(weights, name);
    model_input *bound = &m->inputs[m->num_inputs++];
    *bound = (model_input){input, GIVEN_STEP, NULL};
    if (weight) {
      bound->kind = GIVEN_WEIGHT;
      if (!(bound->weight = place_weight(m, folder, weight, message))) return -1;
    } else if (is_pool(groups, name)) {
      bound->kind = GIVEN_POOL;
    } else if (by_name(outputs, name)) {
      bound->kind = GIVEN_OUTPUT;
    } else if (!is_step_input(name)) {
      return FAIL(message, "%s/manifest.json: forward takes '%s', which this program does not give", folder, name), -1;
    }
    m->has_state |= !strncmp(name, "state_slots.", 12);
  }
  return 0;
}

static void start_threads(cupola_model *m, int32_t (*set_threads)(int32_t), int32_t wanted) {
  int32_t cores[MOST_CORES], num_cores, count = choose_cores("", wanted, cores, &num_cores);
  void (*set_cores)(const int32_t *, int32_t) = (void (*)(const int32_t *, int32_t))library_symbol(m->library, "cupola_set_cores");
  if (set_cores) set_cores(cores, num_cores);
  set_threads(count);
}

static int bind_library(cupola_model *m, const char *folder, const json *chosen, int32_t num_threads, char *message) {
  char path[MAX_PATH_BYTES], problem[CUPOLA_MESSAGE_BYTES];
  if (snprintf(path, sizeof path, "%s/%s", folder, json_text(chosen, "file")) >= (int)sizeof path) return FAIL(message, "the path is too long"), -1;
  file_map map = {0};
  int is_there = map_file(path, &map) == 0;
  unmap_file(&map); /* a package may bring the library where the system looks for those by name: Android's lib/arm64-v8a */
  m->library = open_library(is_there ? path : json_text(chosen, "file"), problem);
  if (!m->library) return FAIL(message, "%s: %s", path, problem), -1;
  int32_t (*set_threads)(int32_t) = (int32_t(*)(int32_t))library_symbol(m->library, "cupola_set_threads");
  const int32_t *abi = library_symbol(m->library, "cupola_abi");
  m->run = (run_function)library_symbol(m->library, "cupola_run");
  m->workspace_bytes = (workspace_function)library_symbol(m->library, "cupola_workspace_bytes");
  if (!set_threads || !abi || *abi != ABI || !m->run || !m->workspace_bytes) return FAIL(message, "%s: is of another version", path), -1;
  m->set_power_saver = (void (*)(int32_t))library_symbol(m->library, "cupola_set_power_saver");
  start_threads(m, set_threads, num_threads);
  const json *dims = json_get(json_root(m->plan), "dims");
  for (const json *dim = dims ? dims->first : NULL; dim; dim = dim->next) {
    if (m->num_dims == MAX_DIMS || dim->kind != JSON_STRING) return FAIL(message, "%s: the plan's dims are unknown", folder), -1;
    m->dims[m->num_dims++] = dim->text;
  }
  return 0;
}

static int open_parts(cupola_model *m, const char *folder, int32_t num_threads, char *message) {
  if (!(m->manifest = read_json(folder, "manifest.json", message))) return -1;
  const json *manifest = json_root(m->manifest), *model = json_get(manifest, "model");
  int64_t version = json_number(manifest, "format_version", -1);
  if (version != FORMAT_VERSION) return FAIL(message, "%s: is of format %lld, this reads %d", folder, (long long)version, FORMAT_VERSION), -1;
  const json *chosen = choose_library(manifest, folder, message);
  if (!chosen || !(m->plan = read_json(folder, json_text(chosen, "plan"), message))) return -1;
  snprintf(m->target, sizeof m->target, "%s", json_text(json_get(chosen, "target"), "name"));
  m->forward = by_name(json_get(manifest, "functions"), "forward");
  m->block_size = json_number(json_get(manifest, "kv"), "block_size", 0);
  m->vocabulary = (int32_t)json_number(model, "vocab_size", 0);
  m->context = (int32_t)json_number(model, "context_length", 0);
  if (!m->forward || m->block_size < 1 || m->vocabulary < 1 || m->context < 1) return FAIL(message, "%s: its manifest lacks fields", folder), -1;
  const json *draft = json_get(model, "draft_only");
  if (draft && draft->number) return FAIL(message, "%s: is a draft model, which says some tokens alone", folder), -1;
  return bind_inputs(m, folder, message) || bind_library(m, folder, chosen, num_threads, message) ? -1 : 0;
}

cupola_model *cupola_model_open(const char *folder, int32_t num_threads, char *message) {
  cupola_model *m = calloc(1, sizeof *m);
  if (!m) return FAIL(message, "no memory is left"), NULL;
  if (open_parts(m, folder, num_threads, message) == 0) return m;
  cupola_model_close(m);
  return NULL;
}

void cupola_model_close(cupola_model *m) {
  if (!m) return;
  for (int i = 0; i < m->num_copies; ++i) give_back(m->copies[i]);
  for (int i = 0; i < m->num_files; ++i) unmap_file(&m->files[i]);
  json_free(m->manifest);
  json_free(m->plan);
  free(m->inputs);
  free(m->copies);
  free(m);
}

int32_t cupola_model_save_power(cupola_model *m, int32_t is_on) {
  if (!m->set_power_saver) return -1;
  m->set_power_saver(is_on);
  return 0;
}

const char *cupola_model_target(const cupola_model *m) { return m->target; }

int32_t cupola_model_vocabulary(const cupola_model *m) { return m->vocabulary; }

int32_t cupola_model_context(const cupola_model *m) { return m->context; }

int32_t cupola_model_stops(const cupola_model *m, int32_t token) {
  const json *stops = json_get(json_get(json_root(m->manifest), "model"), "stop_token_ids");
  for (const json *stop = stops ? stops->first : NULL; stop; stop = stop->next)
    if (stop->kind == JSON_NUMBER && (int32_t)stop->number == token) return 1;
  return 0;
}
