/* One key's authenticated encryption of frames. */
#include "aead.h"

#ifdef VELA_LIBCRYPTO

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { NONCE = 12 };

struct aead {
	EVP_CIPHER_CTX *context; /* has the key; a frame only sets the nonce */
	uint8_t salt[AEAD_SALT];
};

/* Fetching takes longer than a frame (measured: 1.3 us with keying), so it is done once. */
static struct {
	pthread_once_t once;
	EVP_CIPHER *aes_256_gcm, *chacha20_poly1305;
} ciphers = {.once = PTHREAD_ONCE_INIT};

static void fetch(void)
{
	/* Without openssl.cnf: which ciphers there are is not to depend on a file, and a worker can open
	 * none. */
	if (!OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL))
		return;
	ciphers.aes_256_gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	ciphers.chacha20_poly1305 = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL);
}

const char *aead_unavailable(void)
{
	pthread_once(&ciphers.once, fetch);
	if (ciphers.aes_256_gcm == NULL)
		return "OpenSSL has no AES-256-GCM";
	if (ciphers.chacha20_poly1305 == NULL)
		return "OpenSSL has no ChaCha20-Poly1305";
	return NULL;
}

struct aead *aead_open(enum suite suite, const uint8_t key[AEAD_KEY], const uint8_t salt[AEAD_SALT],
		       enum direction direction)
{
	if (aead_unavailable())
		return NULL;
	const EVP_CIPHER *cipher = suite == SUITE_AES_256_GCM	    ? ciphers.aes_256_gcm :
				   suite == SUITE_CHACHA20_POLY1305 ? ciphers.chacha20_poly1305 :
								      NULL;
	struct aead *self = cipher ? calloc(1, sizeof(*self)) : NULL;
	if (self == NULL)
		return NULL;
	memcpy(self->salt, salt, AEAD_SALT);
	self->context = EVP_CIPHER_CTX_new();
	if (self->context == NULL ||
	    !EVP_CipherInit_ex2(self->context, cipher, key, NULL, direction == AEAD_SEALS, NULL) ||
	    EVP_CIPHER_CTX_get_iv_length(self->context) != NONCE) {
		aead_close(self);
		return NULL;
	}
	return self;
}

void aead_close(struct aead *self)
{
	if (self == NULL)
		return;
	EVP_CIPHER_CTX_free(self->context); /* which overwrites the key schedule */
	OPENSSL_cleanse(self, sizeof(*self));
	free(self);
}

/* The same context serves all frames of a key, so only the nonce is set. -1: as it was opened. */
static bool set_nonce(struct aead *self, uint32_t counter)
{
	uint8_t nonce[NONCE];

	memcpy(nonce, self->salt, AEAD_SALT);
	for (int i = 0; i < NONCE - AEAD_SALT; i++)
		nonce[AEAD_SALT + i] = (uint8_t)(counter >> (24 - 8 * i));
	return EVP_CipherInit_ex2(self->context, NULL, NULL, nonce, -1, NULL);
}

bool aead_seal(struct aead *self, uint32_t counter, uint8_t *text, size_t length)
{
	int written;

	return set_nonce(self, counter) &&
	       EVP_EncryptUpdate(self->context, text, &written, text, (int)length) &&
	       EVP_EncryptFinal_ex(self->context, text + written, &written) &&
	       EVP_CIPHER_CTX_ctrl(self->context, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, text + length);
}

bool aead_open_frame(struct aead *self, uint32_t counter, uint8_t *text, size_t length)
{
	int written;

	return set_nonce(self, counter) &&
	       EVP_CIPHER_CTX_ctrl(self->context, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG, text + length) &&
	       EVP_DecryptUpdate(self->context, text, &written, text, (int)length) &&
	       EVP_DecryptFinal_ex(self->context, text + written, &written) > 0;
}

#else

const char *aead_unavailable(void)
{
	return "the native engine was built without OpenSSL 3 (libssl-dev)";
}

struct aead *aead_open(enum suite suite, const uint8_t key[AEAD_KEY], const uint8_t salt[AEAD_SALT],
		       enum direction direction)
{
	(void)suite;
	(void)key;
	(void)salt;
	(void)direction;
	return NULL;
}

void aead_close(struct aead *self)
{
	(void)self;
}

bool aead_seal(struct aead *self, uint32_t counter, uint8_t *text, size_t length)
{
	(void)self;
	(void)counter;
	(void)text;
	(void)length;
	return false;
}

bool aead_open_frame(struct aead *self, uint32_t counter, uint8_t *text, size_t length)
{
	(void)self;
	(void)counter;
	(void)text;
	(void)length;
	return false;
}

#endif
