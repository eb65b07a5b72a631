#include "comm/nccl.h"

#include <cstdlib>
#include <functional>
#include <string>

#include "comm/hub.h"
#include "comm/nccl_library.h"
#include "comm/nccl_link.h"

namespace tokenring {
namespace comm {
namespace {

int type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return nccl::kFloat32;
    case DType::bf16:
      return nccl::kBfloat16;
    case DType::f16:
      return nccl::kFloat16;
    case DType::i32:
      return nccl::kInt32;
    case DType::u8:
      return nccl::kUint8;
  }
  return -1;
}

int operation_of(Reduction how) {
  return how == Reduction::sum ? nccl::kSum : how == Reduction::max ? nccl::kMax : nccl::kMin;
}

class Nccl final : public Communicator {
 public:
  Nccl(const nccl::Library& library, const CommunicatorOptions& options, bool check)
      : library_(library), options_(options), link_(std::make_shared<NcclLink>(library, options, check)) {}
  ~Nccl() override { link_->leave(); }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  void join() override { link_->join(); }

  void broadcast(Stream& stream, Tensor x, int root) override {
    check_broadcast(x, root, size());
    run(stream, call_of(0, Kind::broadcast, x, root), x, [=, &l = library_](nccl::Comm comm, cuda::CudaStream s) {
      return l.Broadcast(x.data, x.data, x.elements(), type_of(x.dtype), root, comm, s);
    });
  }
  void all_reduce(Stream& stream, Tensor x, Reduction how) override {
    check_all_reduce(x);
    run(stream, call_of(0, Kind::all_reduce, x, 0, how), x, [=, &l = library_](nccl::Comm comm, cuda::CudaStream s) {
      return l.AllReduce(x.data, x.data, x.elements(), type_of(x.dtype), operation_of(how), comm, s);
    });
  }
  void reduce_scatter(Stream& stream, Tensor in, Tensor out, Reduction how) override {
    check_reduce_scatter(in, out, size());
    run(stream, call_of(0, Kind::reduce_scatter, out, 0, how), out,
        [=, &l = library_](nccl::Comm comm, cuda::CudaStream s) {
          return l.ReduceScatter(in.data, out.data, out.elements(), type_of(in.dtype), operation_of(how), comm, s);
        });
  }
  void all_gather(Stream& stream, Tensor in, Tensor out) override {
    check_all_gather(in, out, size());
    run(stream, call_of(0, Kind::all_gather, in), in, [=, &l = library_](nccl::Comm comm, cuda::CudaStream s) {
      return l.AllGather(in.data, out.data, in.elements(), type_of(in.dtype), comm, s);
    });
  }

  void exchange(Stream& stream, std::vector<Transfer> group) override {
    check_exchange(group, rank(), size());
    std::vector<Message> messages;
    for (const Transfer& one : group)
      messages.push_back(
          {one.way == Transfer::Way::send, one.peer, one.tensor.elements(), static_cast<uint8_t>(one.tensor.dtype)});
    // Nothing is sent of what is empty: both ends know.
    std::erase_if(group, [](const Transfer& one) { return one.tensor.elements() == 0; });
    link_->run(stream, call_of(0, Kind::exchange, tensor(nullptr, DType::u8, {0})), std::move(messages),
               [this, group = std::move(group)](nccl::Comm comm, cuda::CudaStream s) {
                 if (group.empty()) return nccl::kSuccess;
                 int result = library_.GroupStart();
                 for (const Transfer& one : group) {
                   if (result != nccl::kSuccess && result != nccl::kInProgress) break;
                   const Tensor& t = one.tensor;
                   const int type = type_of(t.dtype);
                   result = one.way == Transfer::Way::send
                                ? library_.Send(t.data, t.elements(), type, one.peer, comm, s)
                                : library_.Recv(t.data, t.elements(), type, one.peer, comm, s);
                 }
                 // The group ends whatever became of its parts; the first error is the one to tell.
                 const int end = library_.GroupEnd();
                 return result == nccl::kSuccess || result == nccl::kInProgress ? end : result;
               });
  }

  // A sum of one number each, in a room of the stream that holds nothing between two ops.
  void barrier(Stream& stream) override {
    void* room = cuda::device_stream(stream).room(cuda::DeviceStream::Room::sums, sizeof(int32_t));
    link_->run(stream, call_of(0, Kind::barrier, tensor(nullptr, DType::u8, {0})), {},
               [=, this](nccl::Comm comm, cuda::CudaStream s) {
                 return library_.AllReduce(room, room, 1, nccl::kInt32, nccl::kSum, comm, s);
               });
  }

  void abort(const std::string& why) noexcept override { link_->abort(why); }

 private:
  // `what` is all that moves: without elements NCCL has nothing to do.
  void run(Stream& stream, const Call& call, const Tensor& what,
           const std::function<int(nccl::Comm, cuda::CudaStream)>& issue) {
    link_->run(stream, call, {}, [&](nccl::Comm comm, cuda::CudaStream s) {
      return what.elements() == 0 ? nccl::kSuccess : issue(comm, s);
    });
  }

  const nccl::Library& library_;
  const CommunicatorOptions options_;
  const std::shared_ptr<NcclLink> link_;
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(const nccl::Library* library, bool check) : library_(library), check_(check) {}
  UniqueId make_id() const override { return open_hub(); }
  std::unique_ptr<Communicator> make(const CommunicatorOptions& options) const override {
    options.check(kMaxNcclRanks);
    require(options.id.bytes != UniqueId{}.bytes, "the unique id is empty; take one from uniqueId()");
    return std::make_unique<Nccl>(library_ ? *library_ : nccl::load(), options, check_);
  }

 private:
  const nccl::Library* library_;  // null: this machine's
  const bool check_;
};

}  // namespace
}  // namespace comm

const Transport& nccl_transport() {
  static const comm::NcclTransport transport(nullptr, [] {
    const char* check = std::getenv("TOKENRING_NCCL_CHECK");
    return !check || std::string(check) != "0";
  }());
  return transport;
}

std::unique_ptr<Transport> make_nccl_transport(const nccl::Library& library, bool check) {
  return std::make_unique<comm::NcclTransport>(&library, check);
}

UniqueId nccl_unique_id() {
  const nccl::Library& library = nccl::load();
  UniqueId id;
  if (const int error = library.GetUniqueId(&id))
    fail("COMMUNICATOR", "NCCL gave no unique id: ", library.GetErrorString(error), ": ",
         library.GetLastError(nullptr));
  return id;
}

}  // namespace tokenring
