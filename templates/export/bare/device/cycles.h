/* Counts the core's clock cycles. */
#ifndef TINYQ_CYCLES_H
#define TINYQ_CYCLES_H

#include <stdint.h>

enum { CYCLES_NONE = 0, CYCLES_DWT = 1, CYCLES_SYSTICK = 2, CYCLES_TIMER = 3 };

int cycles_start(void);      /* which counter counts; CYCLES_NONE when none moves */
uint32_t cycles_read(void);  /* modulo 2^32 */

#endif
