/* One key's authenticated encryption of frames. The only part of the data path that knows OpenSSL.
 * Twin of vela/dataplane/aead.py; docs/protocol.md, 3.6. */
#ifndef VELA_NATIVE_AEAD_H
#define VELA_NATIVE_AEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	AEAD_KEY = 32,
	AEAD_SALT = 8,  /* of the nonce's 12 bytes; the frame's counter is the rest */
	AEAD_TAG = 16,
};

/* vela.wire.Suite, the number on the wire */
enum suite { SUITE_AES_256_GCM = 1, SUITE_CHACHA20_POLY1305 = 2 };

enum direction { AEAD_OPENS = 0, AEAD_SEALS = 1 };

/* Why this build cannot encrypt, in words; NULL where it can. The first call finds the ciphers: let it
 * come before any fork, so that all workers share the pages of that. */
const char *aead_unavailable(void);

/* A key for one direction and one thread. */
struct aead;

/* Returns NULL where there is no memory, or no such suite. Nothing of the key is kept but in there. */
struct aead *aead_open(enum suite suite, const uint8_t key[AEAD_KEY], const uint8_t salt[AEAD_SALT],
		       enum direction direction);

/* Overwrites the key; NULL is no error. */
void aead_close(struct aead *self);

/* Encrypt length bytes in place, at least one, and write the tag behind them. Each counter at most once
 * under a key, whatever the thread. False where the library fails: then nothing of text may be sent. */
bool aead_seal(struct aead *self, uint32_t counter, uint8_t *text, size_t length);

/* Decrypt length bytes in place, at least one; the tag lies behind them. False where the tag is wrong:
 * text is then worthless. */
bool aead_open_frame(struct aead *self, uint32_t counter, uint8_t *text, size_t length);

#endif
