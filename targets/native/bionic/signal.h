/* Bionic's signals on 64-bit machines, as far as libraries use them; numbers are those of Linux (include/uapi/asm-generic/signal.h). */
#pragma once

typedef unsigned long sigset_t;

enum { SIGILL = 4, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV = 11, SIGPROF = 27, SIGSYS = 31 };
enum { SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK };

int sigdelset(sigset_t *set, int signal);
int sigfillset(sigset_t *set);
