/* What a compiler's own run-time library has of <string.h>, where there is no C library. */
#ifndef TINYQ_FREESTANDING_STRING_H
#define TINYQ_FREESTANDING_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *first, const void *second, size_t bytes);

#endif
