/*
 * A test bench for @name@_predict on an emulated Cortex-M: QEMU's MPS2 boards, semihosting for input and output.
 *
 * It reads observations from the file observations.f32 (float32, one behind the other), writes actions to actions.f32, and
 * prints how many instructions a decision takes and how much stack. Under `-icount shift=0` QEMU's clock advances by a nanosecond
 * for each instruction, so the SysTick timer, which runs with TICK_NS nanoseconds per tick, counts instructions. Each decision is
 * repeated REPEATS times between two readings.
 *
 * On a real board keep @name@.c and @name@.h, and throw this file and the linker scripts away.
 */
#include <stddef.h>
#include <stdint.h>

#include "@name@.h"

#ifndef REPEATS
#define REPEATS 10
#endif
#ifndef TICK_NS
#define TICK_NS 40
#endif
#ifndef PAINTED
#define PAINTED 0x100000 /* bytes of stack whose use is found out */
#endif

/* --- Start --- */

extern uint32_t data_load, data_start, data_end, bss_start, bss_end, stack_top;
int main(void);
void Reset_Handler(void);
static void fault(void);

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top,          (const void *)Reset_Handler, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault,         (const void *)fault, NULL,
    NULL,                NULL,                        NULL,                (const void *)fault,
    (const void *)fault, NULL,                        (const void *)fault, (const void *)fault,
};

/* --- Semihosting --- */

static int call(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(int code)
{
    const uint32_t block[2] = {0x20026 /* application exit */, (uint32_t)code};
    call(0x20, block);
    for (;;) {
    }
}

static void fault(void)
{
    call(0x04, "fault\n");
    leave(70);
}

static int open_file(const char *name, size_t length, int mode)
{
    const uint32_t block[3] = {(uint32_t)name, (uint32_t)mode, (uint32_t)length};
    return call(0x01, block);
}

/* Returns how many bytes were not read, or not written */
static int transfer(int operation, int file, const void *data, size_t length)
{
    const uint32_t block[3] = {(uint32_t)file, (uint32_t)data, (uint32_t)length};
    return call(operation, block);
}

static void print(const char *label, uint64_t value)
{
    char digits[21];
    int i = 20;
    digits[i] = '\0';
    do {
        digits[--i] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    call(0x04, label);
    call(0x04, " ");
    call(0x04, digits + i);
    call(0x04, "\n");
}

/* --- Measurement --- */

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018)
#define CPACR (*(volatile uint32_t *)0xE000ED88)
#define PAINT 0xA5A5A5A5u

static float observation[@big@_N_OBSERVATION];
static float action[@big@_N_ACTION];

__attribute__((noinline)) static uint32_t ticks_of_decisions(int *refused)
{
    const uint32_t start = SYSTICK_VALUE;
    int i;
    for (i = 0; i < REPEATS; i++) *refused |= @name@_predict(observation, action);
    return (start - SYSTICK_VALUE) & 0xFFFFFF;
}

int main(void)
{
    const int in = open_file("observations.f32", 16, 1 /* rb */), out = open_file("actions.f32", 11, 5 /* wb */);
    uint64_t ticks = 0;
    uint32_t most = 0, decisions = 0, *paint, *here, *lowest;
    int refused = 0;
    if (in < 0 || out < 0) leave(71);
    SYSTICK_RELOAD = 0xFFFFFF;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 5; /* on, with the processor's clock */
    __asm__ volatile("mov %0, sp" : "=r"(here));
    lowest = here - PAINTED / 4;
    for (paint = lowest; paint < here; paint++) *paint = PAINT;
    while (transfer(0x06, in, observation, sizeof observation) == 0) {
        const uint32_t taken = ticks_of_decisions(&refused);
        ticks += taken;
        most = taken > most ? taken : most;
        decisions++;
        if (transfer(0x05, out, action, sizeof action) != 0) leave(72);
    }
    for (paint = lowest; paint < here && *paint == PAINT; paint++) {
    }
    print("decisions", decisions);
    print("refused", (uint64_t)refused);
    print("instructions_x1000", decisions ? ticks * TICK_NS * 1000 / ((uint64_t)decisions * REPEATS) : 0);
    print("most_instructions", (uint64_t)most * TICK_NS / REPEATS);
    print("stack", (uint64_t)((char *)here - (char *)paint));
    leave(0);
    return 0;
}

void Reset_Handler(void)
{
    uint32_t *from = &data_load, *to = &data_start;
    CPACR |= 0xFu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\n isb");
    while (to < &data_end) *to++ = *from++;
    for (to = &bss_start; to < &bss_end; to++) *to = 0;
    leave(main());
}
