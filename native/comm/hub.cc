#include "comm/hub.h"

#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <memory>
#include <optional>
#include <thread>

#include "comm/connection.h"
#include "comm/referee.h"

namespace tokenring::comm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kMagic = 0x316275686B6F74;  // "tokhub1"
static_assert(sizeof(HubId) <= sizeof(UniqueId));

class Hub {
 public:
  Hub(int listener, const HubId& id) : listener_(listener), id_(id) {}
  ~Hub() {
    if (listener_ >= 0) close(listener_);
  }

  void run() {
    while (!over()) {
      wait();
      const auto now = Clock::now();
      // A hub that stood still knows nothing of its ranks' silence.
      if (now - looked_ > 5 * kHeartbeat)
        for (Peer& peer : peers_) peer.heard = now;
      looked_ = now;
      for (auto peer = peers_.begin(); peer != peers_.end();) peer = serve(*peer) ? std::next(peer) : part(peer);
      if (referee_) referee_->tick(now);
      tell();
    }
  }

 private:
  struct Peer {
    explicit Peer(int fd) : line(fd) {}
    Connection line;
    int rank = -1;  // before its hello
    bool refused = false, left = false;
    uint64_t told = 0;  // passed
    Clock::time_point heard = Clock::now();
  };

  // All that came have gone, and no others can come.
  bool over() const { return referee_ && peers_.empty() && (all_came_ || referee_->verdict()); }

  void wait() {
    std::vector<pollfd> fds = {{listener_, POLLIN, 0}};
    for (const Peer& peer : peers_)
      fds.push_back({peer.line.fd(), static_cast<short>(POLLIN | (peer.line.full() ? POLLOUT : 0)), 0});
    poll(fds.data(), fds.size(), peers_.empty() ? -1 : static_cast<int>(kHeartbeat.count()));
    if (!(fds[0].revents & POLLIN)) return;
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) peers_.emplace_back(fd);
  }

  bool serve(Peer& peer) {
    try {
      const bool open = peer.line.serve([&](uint32_t type, const std::string& bytes) {
        peer.heard = Clock::now();
        if (!peer.refused) hear(peer, static_cast<Say>(type), bytes);
      });
      // A stranger, or one that was refused, has a while.
      return open && (peer.rank >= 0 || Clock::now() - peer.heard < std::chrono::seconds(10));
    } catch (const Failure&) {
      return false;  // it speaks another language
    }
  }

  std::list<Peer>::iterator part(std::list<Peer>::iterator peer) {
    if (peer->rank >= 0 && !peer->refused) referee_->gone(peer->rank, !peer->left, Clock::now());
    return peers_.erase(peer);
  }

  void hear(Peer& peer, Say what, const std::string& bytes) {
    if (what == Say::hello) return greet(peer, read_frame<Hello>(bytes));
    if (peer.rank < 0) fail("COMMUNICATOR", "no hello");
    switch (what) {
      case Say::queued:
        return referee_->queued(peer.rank, announcement(bytes));
      case Say::began:
        return referee_->began(peer.rank, read_frame<uint64_t>(bytes));
      case Say::finished:
        return referee_->finished(peer.rank, read_frame<uint64_t>(bytes));
      case Say::leave:
        peer.left = true;
        return;
      case Say::abort:
        return referee_->aborted(peer.rank, bytes);
      case Say::failed:
        return referee_->failed(peer.rank, bytes, Clock::now());
      case Say::late: {
        std::vector<double> silent(referee_->size());
        for (const Peer& other : peers_)
          if (other.rank >= 0 && !other.refused)
            silent[other.rank] = std::chrono::duration<double>(Clock::now() - other.heard).count();
        return referee_->late(peer.rank, read_frame<double>(bytes), silent);
      }
      default:
        return;
    }
  }

  Announcement announcement(const std::string& bytes) const {
    const size_t messages = (bytes.size() - sizeof(Call)) / sizeof(Message);
    if (bytes.size() != sizeof(Call) + messages * sizeof(Message)) fail("COMMUNICATOR", "a frame of another size");
    Announcement what;
    std::memcpy(&what.call, bytes.data(), sizeof(Call));
    what.messages.resize(messages);
    for (size_t i = 0; i < messages; ++i) {
      std::memcpy(&what.messages[i], bytes.data() + sizeof(Call) + i * sizeof(Message), sizeof(Message));
      const int peer = what.messages[i].peer;
      if (peer < 0 || peer >= referee_->size()) fail("COMMUNICATOR", "a message to rank ", peer);
    }
    return what;
  }

  void greet(Peer& peer, const Hello& hello) {
    if (hello.nonce != id_.nonce) fail("COMMUNICATOR", "a stranger");
    const auto refuse = [&](const std::string& why) {
      peer.refused = true;
      say(peer, Say::refuse, {"COMMUNICATOR", why});
    };
    if (referee_ && referee_->verdict()) {
      peer.refused = true;
      return say(peer, Say::refuse, *referee_->verdict());
    }
    if (hello.version != kHubVersion) return refuse("the ranks run different versions of tokenring");
    if (!referee_) referee_.emplace(hello.size, hello.names);
    if (hello.size != referee_->size())
      return refuse("a communicator of " + std::to_string(hello.size) + " ranks was asked for, but another rank said " +
                    std::to_string(referee_->size()) + "; give all the same size");
    if (hello.rank < 0 || hello.rank >= hello.size || referee_->has_joined(hello.rank))
      return refuse("rank " + std::to_string(hello.rank) +
                    " of this communicator is taken already; give every rank its own number");
    peer.rank = hello.rank;
    if (hello.rank == 0) nccl_ = hello.nccl;
    const bool here = hello.host == this_host();
    referee_->joined(hello.rank, "process " + std::to_string(hello.process) + (here ? "" : " on another host"));
    if (!referee_->all_joined()) return;
    all_came_ = true;
    for (Peer& other : peers_)
      if (other.rank >= 0 && !other.refused) other.line.send(static_cast<uint32_t>(Say::start), nccl_);
  }

  void say(Peer& peer, Say what, const Verdict& verdict) {
    peer.line.send(static_cast<uint32_t>(what), verdict.code + '\0' + verdict.reason);
  }

  void tell() {
    if (!referee_) return;
    const bool ended = referee_->verdict().has_value();
    for (Peer& peer : peers_) {
      if (peer.rank < 0 || peer.refused) continue;
      if (const uint64_t passed = referee_->passed(peer.rank); passed != peer.told && !ended) {
        peer.told = passed;
        peer.line.send(static_cast<uint32_t>(Say::passed), passed);
      }
      if (ended && !told_verdict_) say(peer, Say::verdict, *referee_->verdict());
    }
    told_verdict_ = ended;
  }

  int listener_;
  const HubId id_;
  std::list<Peer> peers_;
  std::optional<Referee> referee_;
  UniqueId nccl_;
  bool all_came_ = false, told_verdict_ = false;
  Clock::time_point looked_ = Clock::now();
};

}  // namespace

UniqueId open_hub() {
  HubId content{};
  content.magic = kMagic;
  if (getrandom(content.nonce.data(), content.nonce.size(), 0) != static_cast<ssize_t>(content.nonce.size()))
    fail("INTERNAL", "the system gave no random bytes for a unique id");
  const int listener = listen_anywhere(&content.place);
  auto hub = std::make_unique<Hub>(listener, content);
  // It ends with its ranks, or with the process.
  std::thread([hub = std::move(hub)] { hub->run(); }).detach();
  UniqueId id;
  std::memcpy(id.bytes.data(), &content, sizeof(content));
  return id;
}

bool read_hub_id(const UniqueId& id, HubId* content) {
  std::memcpy(content, id.bytes.data(), sizeof(*content));
  return content->magic == kMagic;
}

}  // namespace tokenring::comm
