// The class Communicator of JavaScript around comm/communicator.h. See lib/ops/binding.ts for what each method does.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "addon/jobs.h"
#include "addon/operands.h"
#include "comm/communicator.h"

namespace tokenring::addon {

class CommunicatorObject : public Napi::ObjectWrap<CommunicatorObject> {
 public:
  static Napi::Function define(Napi::Env);
  explicit CommunicatorObject(const Napi::CallbackInfo&);

 private:
  // A rank's place, and the stream that its collectives go to. On a GPU, what lies in memory of the host is copied.
  struct Link {
    std::shared_ptr<Device> device;
    std::unique_ptr<Communicator> comm;
    std::unique_ptr<Stream> wire;  // ends first
    bool gpu = false;
    std::vector<Buffer> rooms;  // for copies, each as large as any before it was
    // Of the last attention in two levels: what it waits for may be there.
    std::weak_ptr<Link> node;
    void abort(const std::string& why) {
      comm->abort(why);
      if (const auto beside = node.lock()) beside->comm->abort(why);
    }
  };
  class Staged;

  template <Napi::Value (CommunicatorObject::*method)(const Napi::CallbackInfo&)>
  Napi::Value guard(const Napi::CallbackInfo&);

  Napi::Value disposed(const Napi::CallbackInfo&);
  Napi::Value join(const Napi::CallbackInfo&);
  Napi::Value broadcast(const Napi::CallbackInfo&);
  Napi::Value all_reduce(const Napi::CallbackInfo&);
  Napi::Value reduce_scatter(const Napi::CallbackInfo&);
  Napi::Value all_gather(const Napi::CallbackInfo&);
  Napi::Value exchange(const Napi::CallbackInfo&);
  Napi::Value barrier(const Napi::CallbackInfo&);
  Napi::Value ring_attention(const Napi::CallbackInfo&);
  Napi::Value ring_attention_backward(const Napi::CallbackInfo&);
  Napi::Value abort(const Napi::CallbackInfo&);
  Napi::Value dispose(const Napi::CallbackInfo&);

  // Queues work(link, staged); an abort of the call aborts the communicator.
  template <class Work>
  Napi::Value submit(Napi::Env, std::shared_ptr<Held>, Work);
  Napi::Value attend(const Napi::CallbackInfo&, bool backward);

  std::shared_ptr<Link> link_;  // null after dispose()
  std::unique_ptr<Jobs> jobs_;  // ends before the link
};

// A unique id, as uniqueId() gives it.
UniqueId id_argument(const Arguments& from, const char* field);

// uniqueId(kind) of the binding.
Napi::Value unique_id(const Napi::CallbackInfo&);

}  // namespace tokenring::addon
