/* A text that goes on: one sequence, whose blocks of keys and values follow one another from block 0 on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { CHUNK = 256 }; /* tokens of a step: what lies between its kernels takes memory for each */

struct cupola_session {
  cupola_model *model;
  int32_t length, max_tokens;
  void **memory;       /* of pools, outputs and what a step brings; a weight's is the model's */
  const float *logits; /* one of them */
  void *workspace;
  int64_t workspace_bytes;
};

/* The sizes of a step of `count` tokens after which there are `end`. */
static size_table step_sizes(const cupola_session *s, int64_t count, int64_t end, int64_t *values) {
  const cupola_model *m = s->model;
  int64_t blocks = (end + m->block_size - 1) / m->block_size, all = (s->max_tokens + m->block_size - 1) / m->block_size;
  for (int i = 0; i < m->num_dims; ++i) {
    const char *name = m->dims[i];
    values[i] = !strcmp(name, "n") ? count : !strncmp(name, "max_blocks", 10) ? blocks : !strncmp(name, "num_blocks", 10) ? all : 1;
  }
  return (size_table){m->dims, values, m->num_dims};
}

cupola_session *cupola_session_open(cupola_model *m, int32_t max_tokens, char *message) {
  int64_t values[MAX_DIMS];
  cupola_session *s = calloc(1, sizeof *s);
  if (!s || !(s->memory = calloc((size_t)m->num_inputs + 1, sizeof *s->memory))) {
    free(s);
    return FAIL(message, "no memory is left"), NULL;
  }
  s->model = m;
  s->max_tokens = max_tokens > 0 && max_tokens < m->context ? max_tokens : m->context;
  size_table sizes = step_sizes(s, CHUNK, s->max_tokens, values);
  for (int i = 0; i < m->num_inputs; ++i) {
    if (m->inputs[i].kind == GIVEN_WEIGHT) continue;
    const char *name = json_text(m->inputs[i].spec, "name");
    int64_t bytes = tensor_bytes(m->inputs[i].spec, &sizes);
    if (bytes < 0 || !(s->memory[i] = take_zeros((size_t)bytes))) {
      FAIL(message, bytes < 0 ? "the size of '%s' can't be told" : "there is no memory for '%s'", name);
      return cupola_session_close(s), NULL;
    }
    if (!strcmp(name, "logits")) s->logits = s->memory[i];
  }
  if (s->logits) return s;
  FAIL(message, "the model gives no logits");
  return cupola_session_close(s), NULL;
}

void cupola_session_close(cupola_session *s) {
  if (!s) return;
  for (int i = 0; i < s->model->num_inputs; ++i) give_back(s->memory[i]);
  give_back(s->workspace);
  free(s->memory);
  free(s);
}

int32_t cupola_session_length(const cupola_session *s) { return s->length; }

int32_t cupola_session_truncate(cupola_session *s, int32_t length) {
  if (length < 0 || length > s->length || (s->model->has_state && length && length < s->length)) return -1;
  s->length = length;
  return 0;
}

/* Writes what a step brings under that name. */
static void fill(const cupola_session *s, const char *name, int32_t *to, const int32_t *tokens, int32_t count) {
  int32_t end = s->length + count;
  if (!strcmp(name, "tokens")) {
    memcpy(to, tokens, (size_t)count * sizeof *to);
  } else if (!strcmp(name, "positions") || !strncmp(name, "slots.", 6)) { /* blocks follow one another, so that a token's slot is its index */
    for (int32_t i = 0; i < count; ++i) to[i] = s->length + i;
  } else if (!strcmp(name, "query_starts")) {
    to[0] = 0;
    to[1] = count;
  } else if (!strcmp(name, "context_lens")) {
    to[0] = end;
  } else if (!strcmp(name, "logit_rows")) {
    to[0] = count - 1;
  } else if (!strcmp(name, "draws")) { /* the likeliest token: LIKELIEST of runtime/artifact/inputs.py; what follows stays 0 */
    to[0] = 0x3F800000;
    to[3] = 1 << 30;
  } else if (!strncmp(name, "block_tables.", 13)) {
    for (int32_t i = 0; i * s->model->block_size < end; ++i) to[i] = i;
  } else { /* state_slots */
    to[0] = to[1] = 0;
  }
}

static int step(cupola_session *s, const int32_t *tokens, int32_t count, char *message) {
  const cupola_model *m = s->model;
  int64_t dims[MAX_DIMS];
  step_sizes(s, count, s->length + count, dims);
  int64_t bytes = m->workspace_bytes(dims);
  if (bytes > s->workspace_bytes) {
    give_back(s->workspace);
    s->workspace = take_zeros((size_t)bytes);
    s->workspace_bytes = s->workspace ? bytes : 0;
  }
  void **inputs = calloc((size_t)m->num_inputs + 1, sizeof *inputs);
  if (!inputs || (bytes && !s->workspace)) {
    free(inputs);
    return FAIL(message, "no memory is left"), -1;
  }
  for (int i = 0; i < m->num_inputs; ++i) {
    inputs[i] = m->inputs[i].kind == GIVEN_WEIGHT ? (void *)m->inputs[i].weight : s->memory[i];
    if (m->inputs[i].kind == GIVEN_STEP) fill(s, json_text(m->inputs[i].spec, "name"), inputs[i], tokens, count);
  }
  int32_t code = m->run(1, dims, inputs, s->workspace, NULL);
  free(inputs);
  if (code) return FAIL(message, "the compiled model failed: call %d", (int)code - 1), -1;
  s->length += count;
  return 0;
}

const float *cupola_session_feed(cupola_session *s, const int32_t *tokens, int32_t count, char *message) {
  int32_t before = s->length;
  if (count < 1 || count > s->max_tokens - before) {
    return FAIL(message, "%d tokens are given where from 1 to %d may be", (int)count, (int)(s->max_tokens - before)), NULL;
  }
  for (int32_t i = 0; i < count; ++i)
    if (tokens[i] < 0 || tokens[i] >= s->model->vocabulary)
      return FAIL(message, "token %d is %d, and the vocabulary has %d", (int)i, (int)tokens[i], (int)s->model->vocabulary), NULL;
  for (int32_t start = 0; start < count; start += CHUNK) {
    int32_t size = count - start < CHUNK ? count - start : CHUNK;
    if (step(s, tokens + start, size, message)) {
      s->length = before;
      return NULL;
    }
  }
  return s->logits;
}

int32_t cupola_likeliest(const cupola_model *m, const float *logits) {
  int32_t best = 0;
  for (int32_t i = 0; i < m->vocabulary; ++i) {
    if (logits[i] != logits[i]) return -1;
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}
