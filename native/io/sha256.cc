// The one-shot functions are marked deprecated in favour of EVP, which would pull in providers and configuration files.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "io/sha256.h"

namespace effnet::io {

Sha256::Sha256() { SHA256_Init(&context_); }

void Sha256::update(const void* data, size_t bytes) { SHA256_Update(&context_, data, bytes); }

std::string Sha256::finish() {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256_Final(digest, &context_);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : digest) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

}  // namespace effnet::io
