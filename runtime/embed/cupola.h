/* An artifact in an app: open a model, feed a session tokens, read logits. C, without Python; `docs/embedding-in-an-app.md` has callers in
   C, Swift and Java. The app brings the tokenizer: here there are token ids alone.

   This interface is kept: functions keep their names, parameters and meaning, and new ones are added. CUPOLA_API grows with each addition. */
#ifndef CUPOLA_H
#define CUPOLA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUPOLA_API = 2, CUPOLA_MESSAGE_BYTES = 512 };

/* A model: its library, chosen for this machine, and its weights, mapped from their files. Several threads may use it, one step at a time. */
typedef struct cupola_model cupola_model;

/* A text that goes on: its keys and values. One thread at a time may use it; it must be closed before its model. */
typedef struct cupola_session cupola_session;

/* Opens an artifact's folder (its path in UTF-8). `num_threads` 0 takes as many as there are cores, of cores that differ the fast ones, and
   threads take the fastest first. Where this fails it gives NULL, and writes why to `message`, which has room for CUPOLA_MESSAGE_BYTES, or is NULL. Content is not held against the manifest's hashes. */
cupola_model *cupola_model_open(const char *folder, int32_t num_threads, char *message);

/* Closes it. The library stays in memory, as its threads may. */
void cupola_model_close(cupola_model *model);

/* Whether threads sleep while they wait for each other, as when the system saves power, instead of watching; at first they don't. It may be
   asked at any time, from any thread, and is of all models with this library. 0, or -1 of a library that can't. Since CUPOLA_API 2. */
int32_t cupola_model_save_power(cupola_model *model, int32_t is_on);

/* The target whose library was chosen, such as "cpu:dotprod@android". It lives as long as the model. */
const char *cupola_model_target(const cupola_model *model);

/* How many tokens there are: logits have one float each. */
int32_t cupola_model_vocabulary(const cupola_model *model);

/* How many tokens a sequence may have. */
int32_t cupola_model_context(const cupola_model *model);

/* Whether a token ends an answer. */
int32_t cupola_model_stops(const cupola_model *model, int32_t token);

/* Begins an empty text of at most `max_tokens` tokens; 0 is as many as the model can have. NULL and a message where it fails. */
cupola_session *cupola_session_open(cupola_model *model, int32_t max_tokens, char *message);

void cupola_session_close(cupola_session *session);

/* How many tokens were fed. */
int32_t cupola_session_length(const cupola_session *session);

/* Feeds tokens, and gives the logits of what follows the last of them: floats for the whole vocabulary, which live until the next call for
   the session. NULL and a message where it fails; the session's length is then what it was. */
const float *cupola_session_feed(cupola_session *session, const int32_t *tokens, int32_t count, char *message);

/* Forgets all tokens from index `length` on. 0, or -1 where that is no index, or where the model carries a state and `length` is not 0. */
int32_t cupola_session_truncate(cupola_session *session, int32_t length);

/* The token of the largest logit, the first of several; -1 where one is no number. */
int32_t cupola_likeliest(const cupola_model *model, const float *logits);

#ifdef __cplusplus
}
#endif
#endif
