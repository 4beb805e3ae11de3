#include <algorithm>
#include <cstring>

#include "fuzz/fuzz.h"

namespace effnet::fuzz {

void mutate_bytes(Bytes& bytes, Random& random) {
  if (bytes.empty()) bytes.push_back(0);
  const size_t at = random.below(bytes.size());
  const auto here = bytes.begin() + static_cast<ptrdiff_t>(at);
  const size_t length = std::min<size_t>(1 + random.below(32), bytes.size() - at);
  switch (random.below(8)) {
    case 0:
      *here ^= static_cast<uint8_t>(1u << random.below(8));
      return;
    case 1:
      *here = static_cast<uint8_t>(random.next());
      return;
    case 2: {
      static constexpr uint8_t kEdges[] = {0, 1, 0x7f, 0x80, 0xfe, 0xff};
      std::fill_n(here, std::min<size_t>(length, 8), random.pick(kEdges));
      return;
    }
    case 3:
      for (size_t i = 0; i < length; ++i) bytes[at + i] = static_cast<uint8_t>(random.next());
      return;
    case 4:
      bytes.erase(here, here + static_cast<ptrdiff_t>(length));
      return;
    case 5: {
      const Bytes copy(here, here + static_cast<ptrdiff_t>(length));
      const size_t to = random.below(bytes.size() + 1);
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(to), copy.begin(), copy.end());
      return;
    }
    case 6: {
      const size_t from = random.below(bytes.size() - length + 1);
      std::memmove(bytes.data() + at, bytes.data() + from, length);
      return;
    }
    default:
      if (random.chance(20))
        bytes.resize(at);
      else
        *here = static_cast<uint8_t>(*here + (random.chance(50) ? 1 : 0xff));
  }
}

}  // namespace effnet::fuzz
