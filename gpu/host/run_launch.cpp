// main() of a kernel built with a sanitizer: runs one launch from a file, and writes the arrays back to it.
// Every array is its own allocation of exactly its size, so that AddressSanitizer sees each byte beyond it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string>
#include <vector>

namespace {
struct Header {  // as tqindex.gpu.host.sanitize writes it
  unsigned grid[3], block[3];
  int schedule;
  unsigned seed, arguments;
};
struct Argument {
  uint64_t bytes, is_array;
};
using Launch = const char*(const unsigned*, const unsigned*, void**, int, unsigned);

void read(std::FILE* file, void* to, size_t bytes) {
  if (bytes && std::fread(to, bytes, 1, file) != 1) std::exit(4);
}
}  // namespace

int main(int, char** argv) {
  std::FILE* file = std::fopen(argv[2], "rb+");
  Header header;
  read(file, &header, sizeof header);
  std::vector<Argument> sizes(header.arguments);
  read(file, sizes.data(), sizes.size() * sizeof(Argument));
  const long start = std::ftell(file);
  std::vector<void*> rooms, pointers;
  for (const Argument& argument : sizes) {
    rooms.push_back(std::malloc(argument.bytes));
    read(file, rooms.back(), argument.bytes);
  }
  for (unsigned i = 0; i < sizes.size(); ++i) pointers.push_back(sizes[i].is_array ? &rooms[i] : rooms[i]);
  auto launch = reinterpret_cast<Launch*>(dlsym(RTLD_DEFAULT, (std::string("shim_launch_") + argv[1]).c_str()));
  if (!launch) return 4;
  const char* error = launch(header.grid, header.block, pointers.data(), header.schedule, header.seed);
  if (error) std::fprintf(stderr, "%s\n", error);
  std::fseek(file, start, SEEK_SET);
  for (unsigned i = 0; i < sizes.size(); ++i) {
    std::fwrite(rooms[i], 1, sizes[i].bytes, file);
    std::free(rooms[i]);
  }
  std::fclose(file);
  return error ? 3 : 0;
}
