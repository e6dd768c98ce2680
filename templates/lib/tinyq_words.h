/* Four bytes at once, from memory of any type. */
#ifndef TINYQ_WORDS_H
#define TINYQ_WORDS_H

#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define TINYQ_COPY_WORD __builtin_memcpy /* one instruction even where -ffreestanding hides memcpy */
#define TINYQ_AT_WORD(address) __builtin_assume_aligned(address, 4)
#else
#define TINYQ_COPY_WORD memcpy
#define TINYQ_AT_WORD(address) (address)
#endif

static inline uint32_t tinyq_load_word(const int8_t *from) {
    uint32_t word;
    TINYQ_COPY_WORD(&word, from, 4);
    return word;
}

static inline void tinyq_store_word(int8_t *to, uint32_t word) {
    TINYQ_COPY_WORD(to, &word, 4);
}

/* The same at a multiple of four bytes: one instruction on every core. */
static inline uint32_t tinyq_load_aligned(const int8_t *from) {
    uint32_t word;
    TINYQ_COPY_WORD(&word, TINYQ_AT_WORD(from), 4);
    return word;
}

static inline void tinyq_store_aligned(int8_t *to, uint32_t word) {
    TINYQ_COPY_WORD(TINYQ_AT_WORD(to), &word, 4);
}

#endif
