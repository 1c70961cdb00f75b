/* What Native.java calls. Models and sessions are addresses there. */
#include <jni.h>
#include <stdint.h>

#include "cupola.h"

#define NATIVE(type, name) JNIEXPORT type JNICALL Java_org_cupola_app_Native_##name

static cupola_model *model_at(jlong address) { return (cupola_model *)(intptr_t)address; }
static cupola_session *session_at(jlong address) { return (cupola_session *)(intptr_t)address; }

static void throw_message(JNIEnv *env, const char *message) {
  jclass kind = (*env)->FindClass(env, "java/lang/IllegalStateException");
  if (kind) (*env)->ThrowNew(env, kind, message);
}

NATIVE(jlong, openModel)(JNIEnv *env, jclass self, jstring folder, jint num_threads) {
  char message[CUPOLA_MESSAGE_BYTES];
  const char *path = (*env)->GetStringUTFChars(env, folder, NULL);
  if (!path) return 0; /* Java has thrown */
  cupola_model *model = cupola_model_open(path, num_threads, message);
  (*env)->ReleaseStringUTFChars(env, folder, path);
  if (!model) throw_message(env, message);
  return (jlong)(intptr_t)model;
}

NATIVE(void, closeModel)(JNIEnv *env, jclass self, jlong model) { cupola_model_close(model_at(model)); }

NATIVE(jstring, target)(JNIEnv *env, jclass self, jlong model) { return (*env)->NewStringUTF(env, cupola_model_target(model_at(model))); }

NATIVE(jint, context)(JNIEnv *env, jclass self, jlong model) { return cupola_model_context(model_at(model)); }

NATIVE(void, savePower)(JNIEnv *env, jclass self, jlong model, jboolean is_on) { cupola_model_save_power(model_at(model), is_on); }

NATIVE(jlong, openSession)(JNIEnv *env, jclass self, jlong model, jint max_tokens) {
  char message[CUPOLA_MESSAGE_BYTES];
  cupola_session *session = cupola_session_open(model_at(model), max_tokens, message);
  if (!session) throw_message(env, message);
  return (jlong)(intptr_t)session;
}

NATIVE(void, closeSession)(JNIEnv *env, jclass self, jlong session) { cupola_session_close(session_at(session)); }

/* Feeds tokens; gives the likeliest one after them, or -1 if that ends the answer. */
NATIVE(jint, next)(JNIEnv *env, jclass self, jlong model, jlong session, jintArray tokens) {
  char message[CUPOLA_MESSAGE_BYTES] = "";
  jint *given = (*env)->GetIntArrayElements(env, tokens, NULL), token = -1;
  if (!given) return -1;
  const float *logits = cupola_session_feed(session_at(session), given, (*env)->GetArrayLength(env, tokens), message);
  (*env)->ReleaseIntArrayElements(env, tokens, given, JNI_ABORT);
  if (logits)
    token = cupola_likeliest(model_at(model), logits);
  else
    throw_message(env, message);
  return token >= 0 && cupola_model_stops(model_at(model), token) ? -1 : token;
}
