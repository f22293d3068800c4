/* SHA-256 (FIPS 180-4), with the processor's instructions for it where it has them. */
#ifndef EDGEAPP_SHA256_H
#define EDGEAPP_SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_SIZE = 32, SHA256_BLOCK = 64 };

struct sha256 {
    uint32_t state[8];
    uint64_t length;            /* bytes so far */
    uint8_t block[SHA256_BLOCK]; /* what does not fill a block yet */
};

void sha256_begin(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const void *data, size_t size);
void sha256_end(struct sha256 *hash, uint8_t digest[SHA256_SIZE]);

#endif
