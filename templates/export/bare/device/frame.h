/* Frames over the UART (docs/device.md of tinyq), little-endian:
 * sync C3 5A, version, kind, sequence (2), length (2), payload, CRC-32 of all from version on (4). */
#ifndef TINYQ_FRAME_H
#define TINYQ_FRAME_H

#include <stdint.h>

#define FRAME_VERSION 1u
#define FRAME_PAYLOAD 256u /* most bytes of payload, both ways */

typedef struct {
    uint8_t version;
    uint8_t kind;
    uint16_t sequence;
    uint16_t bytes;
    const uint8_t *payload; /* valid until the next call of frame_receive */
} frame_t;

/* Waits for the next whole frame; what is none is skipped. */
void frame_receive(frame_t *frame);

void frame_send(uint8_t kind, uint16_t sequence, const void *payload, uint32_t bytes);

uint32_t frame_crc32(uint32_t crc, const void *data, uint32_t bytes);

#endif
