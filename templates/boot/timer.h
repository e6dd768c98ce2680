/* A free-running 32-bit timer; under -icount it advances with the instructions executed.
 *
 * TINYQ_TIMER names the driver, TINYQ_TIMER_BASE the device's address. timer_elapsed() gives ticks
 * since timer_start(), whichever way the device counts.
 */
#ifndef TINYQ_TIMER_H
#define TINYQ_TIMER_H

#include <stdint.h>

#define TIMER_NONE 0
#define TIMER_CMSDK_APB 1
#define TIMER_NRF51 2
#define TIMER_SSE_COUNTER 3
#define TIMER_STM32_TIM 4
#define TIMER_MARK 5

#define TIMER_REGISTER(offset) (*(volatile uint32_t *)(TINYQ_TIMER_BASE + (offset)))

#if TINYQ_TIMER == TIMER_CMSDK_APB
/* Counts down. CTRL 0x0, VALUE 0x4, RELOAD 0x8 (Arm Cortex-M System Design Kit, DDI 0479). */
static inline void timer_restart(void)
{
    TIMER_REGISTER(0x0u) = 0u;
    TIMER_REGISTER(0x8u) = 0xFFFFFFFFu;
    TIMER_REGISTER(0x4u) = 0xFFFFFFFFu;
    TIMER_REGISTER(0x0u) = 1u;
}

static inline uint32_t timer_read(void)
{
    return 0u - TIMER_REGISTER(0x4u);
}

#elif TINYQ_TIMER == TIMER_NRF51
/* Counts up; a capture copies the counter to CC[0] (nRF51 Series Reference Manual, TIMER). */
static inline void timer_restart(void)
{
    TIMER_REGISTER(0x504u) = 0u; /* MODE: timer */
    TIMER_REGISTER(0x508u) = 3u; /* BITMODE: 32 bits */
    TIMER_REGISTER(0x510u) = 0u; /* PRESCALER: 16 MHz */
    TIMER_REGISTER(0x00Cu) = 1u; /* TASKS_CLEAR */
    TIMER_REGISTER(0x000u) = 1u; /* TASKS_START */
}

static inline uint32_t timer_read(void)
{
    TIMER_REGISTER(0x040u) = 1u; /* TASKS_CAPTURE[0] */
    return TIMER_REGISTER(0x540u);
}

#elif TINYQ_TIMER == TIMER_SSE_COUNTER
/* Counts up. CNTCR 0x0, CNTCV 0x8 (SSE-300 TRM, 101773, system counter control frame). */
static inline void timer_restart(void)
{
    TIMER_REGISTER(0x0u) = 1u;
}

static inline uint32_t timer_read(void)
{
    return TIMER_REGISTER(0x8u);
}

#elif TINYQ_TIMER == TIMER_STM32_TIM
/* Counts up. CR1 0x0, CNT 0x24, PSC 0x28 (RM0090, TIM2 to TIM5). As QEMU models it: on silicon the
 * device needs its clock enabled first. */
static inline void timer_restart(void)
{
    TIMER_REGISTER(0x28u) = 99u;
    TIMER_REGISTER(0x0u) = 1u;
}

static inline uint32_t timer_read(void)
{
    return TIMER_REGISTER(0x24u);
}

#elif TINYQ_TIMER == TIMER_MARK
/* The emulator notes how many instructions have run whenever this function is entered. */
uint32_t tinyq_mark(void);

static inline void timer_restart(void)
{
}

static inline uint32_t timer_read(void)
{
    return tinyq_mark();
}

#else
static inline void timer_restart(void)
{
}

static inline uint32_t timer_read(void)
{
    return 0u;
}
#endif

#endif
