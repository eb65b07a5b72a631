#include "comm/region.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <mutex>
#include <vector>

#include "comm/host.h"
#include "core/failure.h"

namespace tokenring::comm {
namespace {

constexpr uint64_t kMagic = 0x32676E69726B6F74;  // "tokring2"

// What the bytes of a unique id hold.
struct Id {
  uint64_t magic;
  uint8_t nonce[16];
  int32_t process, descriptor;
  uint64_t host;  // where that is the process's number
};

Id read_id(const UniqueId& id) {
  Id content;
  std::memcpy(&content, id.bytes.data(), sizeof(content));
  require(content.magic == kMagic, "the unique id is none of this version's communicators; take one from uniqueId()");
  return content;
}

size_t aligned(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

// Offsets of the parts.
struct Layout {
  explicit Layout(int size)
      : ranks(aligned(sizeof(Head))),
        mailboxes(ranks + aligned(size * sizeof(RankState))),
        outboxes(mailboxes + aligned(size * size * sizeof(Mailbox))),
        slots(outboxes + size * 2 * kChunk),
        bytes(slots + size * size * kSlots * kChunk) {}
  size_t ranks, mailboxes, outboxes, slots, bytes;
};

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

void* map(int fd, size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED)
    fail("OUT_OF_MEMORY", "the communicator could not map ", bytes, " bytes of shared memory: ", std::strerror(errno));
  return at;
}

// The descriptors that this process keeps open for ids that it made.
struct Kept {
  UniqueId id;
  int fd;
  Head* head;
};
std::mutex kept_mutex;
std::vector<Kept> kept;

void drop(const Kept& entry) {
  munmap(entry.head, sizeof(Head));
  close(entry.fd);
}

template <class Condition>
void drop_kept(Condition condition) {
  std::lock_guard lock(kept_mutex);
  std::erase_if(kept, [&](const Kept& entry) {
    if (!condition(entry)) return false;
    drop(entry);
    return true;
  });
}

// Nobody else will come: all have, or a rank gave up.
bool complete(const Kept& entry) {
  const int32_t size = entry.head->size;
  return (size > 0 && entry.head->joined == size) || entry.head->broken == 2;
}

}  // namespace

UniqueId open_region() {
  drop_kept(complete);
  const int fd = static_cast<int>(syscall(SYS_memfd_create, "tokenring", 1u /* MFD_CLOEXEC */));
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(aligned(sizeof(Head)))) != 0) {
    const int error = errno;
    if (fd >= 0) close(fd);
    fail("OUT_OF_MEMORY", "the communicator could not open shared memory: ", std::strerror(error));
  }
  Head* head;
  try {
    head = static_cast<Head*>(map(fd, sizeof(Head)));
  } catch (...) {
    close(fd);
    throw;
  }
  Id content{kMagic, {}, static_cast<int32_t>(getpid()), fd, host_key("pid")};
  if (getrandom(content.nonce, sizeof(content.nonce), 0) != sizeof(content.nonce)) {
    munmap(head, sizeof(Head));
    close(fd);
    fail("INTERNAL", "the system gave no random bytes for a unique id");
  }
  std::memcpy(head->nonce, content.nonce, sizeof(content.nonce));
  head->magic = kMagic;
  UniqueId id;
  std::memcpy(id.bytes.data(), &content, sizeof(content));
  std::lock_guard lock(kept_mutex);
  kept.push_back({id, fd, head});
  return id;
}

void close_region(const UniqueId& id) {
  drop_kept([&](const Kept& entry) { return entry.id.bytes == id.bytes && complete(entry); });
}

Region::Region(const UniqueId& id, int size) : size_(size) {
  const Id from = read_id(id);
  if (from.host != host_key("pid"))
    fail("COMMUNICATOR", "process ", from.process,
         ", which made the unique id, runs on another host or in another container; ranks on the CPU meet in the "
         "memory of one: start all of them there, or give each a GPU (device \"cuda\"), for those meet over the "
         "network");
  const std::string path = "/proc/" + std::to_string(from.process) + "/fd/" + std::to_string(from.descriptor);
  const Descriptor fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  const auto gone = [&](const std::string& why) {
    fail("COMMUNICATOR", "the memory of the communicator cannot be opened (", why, "): process ", from.process,
         ", which made the unique id, must live on this host, under the same user and in the same container, until all "
         "ranks have joined");
  };
  if (fd.get() < 0) gone(std::strerror(errno));
  struct stat info;
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode) || info.st_size < static_cast<off_t>(sizeof(Head)))
    gone("it holds something else");
  {
    Head* head = static_cast<Head*>(map(fd.get(), sizeof(Head)));
    const bool same = head->magic == kMagic && std::memcmp(head->nonce, from.nonce, sizeof(from.nonce)) == 0;
    int32_t said = 0;
    if (same && head->size.compare_exchange_strong(said, size)) said = size;
    munmap(head, sizeof(Head));
    if (!same) gone("it holds something else");
    if (said != size)
      fail("COMMUNICATOR", "a communicator of ", size, " ranks was asked for, but another rank said ", said,
           "; give all the same size");
  }
  bytes_ = Layout(size).bytes;
  if (info.st_size < static_cast<off_t>(bytes_) && ftruncate(fd.get(), static_cast<off_t>(bytes_)) != 0)
    fail("OUT_OF_MEMORY", "the communicator could not reserve ", bytes_, " bytes: ", std::strerror(errno));
  base_ = static_cast<std::byte*>(map(fd.get(), bytes_));
}

Region::~Region() { munmap(base_, bytes_); }

RankState& Region::rank(int r) const { return reinterpret_cast<RankState*>(base_ + Layout(size_).ranks)[r]; }

std::byte* Region::outbox(int rank, uint64_t step) const {
  return base_ + Layout(size_).outboxes + (static_cast<size_t>(rank) * 2 + step % 2) * kChunk;
}

Mailbox& Region::mailbox(int from, int to) const {
  return reinterpret_cast<Mailbox*>(base_ + Layout(size_).mailboxes)[from * size_ + to];
}

std::byte* Region::slot(int from, int to, uint64_t chunk) const {
  return base_ + Layout(size_).slots + (static_cast<size_t>(from * size_ + to) * kSlots + chunk % kSlots) * kChunk;
}

uint64_t process_start(int32_t process) {
  const std::string path = "/proc/" + std::to_string(process) + "/stat";
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (!file) return 0;
  char text[1024];
  const size_t length = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  text[length] = 0;
  // The name, in brackets, may hold anything; the state is the first field behind it, the start time the 20th.
  const char* at = std::strrchr(text, ')');
  char state = 0;
  unsigned long long started = 0;
  if (!at || std::sscanf(at + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
                         &state, &started) != 2)
    return 0;
  return state == 'Z' || state == 'X' ? 0 : started;
}

void sleep_on(std::atomic<uint32_t>& bell, uint32_t seen, int64_t milliseconds) {
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(milliseconds / 1000);
  limit.tv_nsec = static_cast<long>(milliseconds % 1000) * 1'000'000;
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&bell), FUTEX_WAIT, seen, &limit, nullptr, 0);
}

void ring(RankState& rank) {
  if (rank.asleep == 0) return;
  ++rank.bell;
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&rank.bell), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

}  // namespace tokenring::comm
