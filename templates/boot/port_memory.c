/* Harness port without files: the samples lie in memory, results go over the UART as lines of text.
 *
 * At TINYQ_SAMPLES: the bytes of samples.bin, their CRC-32 (as in zlib), and samples.bin itself.
 * Lines: '=' and up to 32 bytes of outputs.bin in hexadecimal; "END", bytes and CRC-32 of all of it;
 * "EXIT" and the status, which is the last. Any other line is a message.
 */
#include "port.h"
#include "uart.h"

#define LINE 32u
#define SAMPLES ((const uint8_t *)TINYQ_SAMPLES)

enum { IN_FILE, OUT_FILE };

static uint32_t at;          /* bytes of samples.bin that were read */
static uint8_t line[LINE];   /* what was written and not sent */
static uint32_t waiting;
static uint32_t written;
static uint32_t crc;

static uint32_t word_at(uint32_t offset)
{
    uint32_t value = 0;
    uint32_t i;
    for (i = 0; i < 4u; ++i) {
        value |= (uint32_t)SAMPLES[offset + i] << (8u * i);
    }
    return value;
}

/* CRC-32 by half bytes; `sum` is that of what came before, 0 at first. */
static uint32_t crc32(uint32_t sum, const uint8_t *data, uint32_t bytes)
{
    static const uint32_t table[16] = {
        0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u,
        0x4DB26158u, 0x5005713Cu, 0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu,
        0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu,
    };
    uint32_t i;
    sum = ~sum;
    for (i = 0; i < bytes; ++i) {
        sum ^= data[i];
        sum = (sum >> 4) ^ table[sum & 15u];
        sum = (sum >> 4) ^ table[sum & 15u];
    }
    return ~sum;
}

static void put(char character)
{
    static int started;
    if (!started) {
        uart_start();
        started = 1;
    }
    uart_put((uint8_t)character);
}

static void put_hex(uint32_t value, uint32_t digits)
{
    static const char names[] = "0123456789abcdef";
    while (digits-- != 0u) {
        put(names[(value >> (4u * digits)) & 15u]);
    }
}

static void send_line(void)
{
    uint32_t i;
    if (waiting == 0u) {
        return;
    }
    put('=');
    for (i = 0; i < waiting; ++i) {
        put_hex(line[i], 2);
    }
    put('\n');
    waiting = 0;
}

int port_open(const char *path, int mode)
{
    (void)path;
    if (mode != PORT_READ) {
        return OUT_FILE;
    }
    return crc32(0, SAMPLES + 8u, word_at(0)) == word_at(4) ? IN_FILE : -1;
}

int port_read(int handle, void *data, uint32_t bytes)
{
    uint8_t *to = (uint8_t *)data;
    uint32_t i;
    (void)handle;
    if (bytes > word_at(0) - at) {
        return -1;
    }
    for (i = 0; i < bytes; ++i) {
        to[i] = SAMPLES[8u + at + i];
    }
    at += bytes;
    return 0;
}

int port_write(int handle, const void *data, uint32_t bytes)
{
    const uint8_t *from = (const uint8_t *)data;
    uint32_t i;
    (void)handle;
    crc = crc32(crc, from, bytes);
    written += bytes;
    for (i = 0; i < bytes; ++i) {
        line[waiting++] = from[i];
        if (waiting == LINE) {
            send_line();
        }
    }
    return 0;
}

int port_close(int handle)
{
    (void)handle;
    send_line();
    port_print("END ");
    put_hex(written, 8);
    put(' ');
    put_hex(crc, 8);
    put('\n');
    return 0;
}

void port_print(const char *text)
{
    for (; *text != '\0'; ++text) {
        put(*text);
    }
}

void port_exit(int status)
{
    port_print("EXIT ");
    put_hex((uint32_t)status, 8);
    put('\n');
    uart_flush();
    for (;;) {
    }
}
