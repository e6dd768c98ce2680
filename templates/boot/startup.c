/* Start-up of a Cortex-M: vector table, C environment, and a report for every fault. */
#include <stdint.h>

#include "port.h"

extern uint32_t __data_load[], __data_start[], __data_end[];
extern uint32_t __bss_start[], __bss_end[], __stack_top[];

int main(void);
void Reset_Handler(void);
void Fault_Handler(void);
void SysTick_Handler(void) __attribute__((weak, alias("Fault_Handler")));
void tinyq_report_fault(const uint32_t *frame);

/* The first 16 entries are the architecture's; other interrupts stay disabled. */
typedef void (*vector_t)(void);
__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    vector_t handlers[15];
} vectors = {__stack_top,
             {Reset_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler,
              Fault_Handler, Fault_Handler, 0, 0, 0, Fault_Handler, Fault_Handler, 0,
              Fault_Handler, SysTick_Handler}};

void Reset_Handler(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    /* Helium and the FPU share coprocessors 10 and 11; CPACR at 0xE000ED88 grants access. First of all,
     * because memset and memcpy use them too. */
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm volatile("dsb\n\tisb" ::: "memory");
#endif
    const uint32_t *from = __data_load;
    for (uint32_t *to = __data_start; to != __data_end; ++to) {
        *to = *from++;
    }
    for (uint32_t *to = __bss_start; to != __bss_end; ++to) {
        *to = 0;
    }
    port_exit(main());
}

void tinyq_report_fault(const uint32_t *frame)
{
    static const char digits[] = "0123456789abcdef";
    char text[] = "FAIL fault at 0x00000000\n";
    const uint32_t pc = frame[6]; /* stacked r0-r3, r12, lr, pc, xpsr */
    for (uint32_t i = 0; i < 8u; ++i) {
        text[16u + i] = digits[(pc >> (28u - 4u * i)) & 15u];
    }
    port_print(text);
    port_exit(1);
}

__attribute__((naked)) void Fault_Handler(void)
{
    __asm volatile("mrs r0, msp\n\t"
                   "ldr r1, =tinyq_report_fault\n\t"
                   "bx r1\n\t"
                   ".ltorg");
}
