/* Bionic's threads on 64-bit machines, as far as libraries use them; types are as Android's libc/include/bits/pthread_types.h has them. */
#pragma once
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint32_t flags;
  void *stack_base;
  size_t stack_size, guard_size;
  int32_t sched_policy, sched_priority;
  char reserved[16];
} pthread_attr_t;
typedef struct {
  int32_t state[12];
} pthread_cond_t;
typedef struct {
  int32_t state[10];
} pthread_mutex_t;
typedef int pthread_key_t;
typedef long pthread_t;

#define PTHREAD_MUTEX_INITIALIZER {{0}}
#define PTHREAD_COND_INITIALIZER {{0}}

int pthread_attr_destroy(pthread_attr_t *attributes);
int pthread_attr_init(pthread_attr_t *attributes);
int pthread_attr_setstacksize(pthread_attr_t *attributes, size_t size);
int pthread_cond_broadcast(pthread_cond_t *condition);
int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);
int pthread_equal(pthread_t left, pthread_t right);
void *pthread_getspecific(pthread_key_t key);
int pthread_join(pthread_t thread, void **result);
int pthread_key_create(pthread_key_t *key, void (*destroy)(void *));
int pthread_mutex_lock(pthread_mutex_t *mutex);
int pthread_mutex_unlock(pthread_mutex_t *mutex);
pthread_t pthread_self(void);
int pthread_setspecific(pthread_key_t key, const void *value);
int pthread_sigmask(int how, const sigset_t *set, sigset_t *before);

/* Android has this in its start files (libc/arch-common/bionic), which come with its NDK. */
extern void *__dso_handle;
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *library);
__attribute__((weak, visibility("hidden"))) void *__dso_handle = &__dso_handle;
static inline int pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
  return __register_atfork(prepare, parent, child, &__dso_handle);
}
