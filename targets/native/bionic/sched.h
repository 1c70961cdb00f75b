/* Bionic's, as far as libraries use it. */
#pragma once
int sched_yield(void);
