/* Bionic's on 64-bit machines, as far as libraries use it. */
#pragma once
typedef long time_t;
typedef int clockid_t;
struct timespec {
  time_t tv_sec;
  long tv_nsec;
};
enum { CLOCK_MONOTONIC = 1 };
int clock_gettime(clockid_t clock, struct timespec *now);
