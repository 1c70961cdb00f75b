/* cupola-run FOLDER NUM_TOKENS NUM_THREADS TOKEN…: feeds a prompt of token ids, then takes the likeliest token so many times.

   Prints a line for each: the token, and a hash of the logits that it was chosen by (64-bit FNV-1a over their bytes). Ends with code 2 and
   a line of text where it can't. */
#include <stdio.h>
#include <stdlib.h>

#include "cupola.h"

static uint64_t hash(const void *data, size_t length) {
  uint64_t value = 0xCBF29CE484222325u;
  for (size_t i = 0; i < length; ++i) value = (value ^ ((const unsigned char *)data)[i]) * 0x100000001B3u;
  return value;
}

static int fail(const char *message) {
  fprintf(stderr, "cupola-run: %s\n", message);
  return 2;
}

int main(int argc, char **argv) {
  char message[CUPOLA_MESSAGE_BYTES];
  if (argc < 5) return fail("give a folder, how many tokens to take, how many threads (0: all cores), and token ids");
  int32_t num_tokens = atoi(argv[2]), num_prompt = argc - 4, code = 0;
  cupola_model *model = cupola_model_open(argv[1], atoi(argv[3]), message);
  if (!model) return fail(message);
  cupola_session *session = cupola_session_open(model, num_prompt + num_tokens, message);
  int32_t *prompt = malloc((size_t)num_prompt * sizeof *prompt);
  const float *logits = NULL;
  if (session && prompt) {
    for (int i = 0; i < num_prompt; ++i) prompt[i] = atoi(argv[4 + i]);
    printf("target %s\n", cupola_model_target(model));
    logits = cupola_session_feed(session, prompt, num_prompt, message);
  }
  for (int32_t i = 0; logits && i < num_tokens; ++i) {
    int32_t token = cupola_likeliest(model, logits);
    printf("%d %016llx\n", (int)token, (unsigned long long)hash(logits, (size_t)cupola_model_vocabulary(model) * sizeof *logits));
    fflush(stdout);
    if (cupola_model_stops(model, token) || i + 1 == num_tokens) break;
    logits = cupola_session_feed(session, &token, 1, message);
  }
  if (!logits) code = fail(message);
  free(prompt);
  cupola_session_close(session);
  cupola_model_close(model);
  return code;
}
