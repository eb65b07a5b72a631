#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "core/random.h"
#include "core/schedule.h"
#include "model/decoder.h"
#include "model/paged_attend.h"
#include "model/pages.h"
#include "model/parameters.h"

namespace tokenring {
namespace {

// Rows of logits alive at once: bounds their memory at a vocabulary of 150k.
constexpr int64_t kLogitRows = 256;

struct Request {
  SampleRequest options;
  SampleDone done;
  size_t start = 0;    // tokens of the session when the request came: what an abort goes back to
  uint64_t order = 0;  // of arrival
  std::vector<float> logprobs;
  std::optional<int64_t> version;  // of the weights that sampled the first token
};

struct Session {
  std::vector<int32_t> tokens;
  int64_t cached = 0;          // tokens whose keys lie in `pages`
  std::vector<int32_t> pages;  // pages_for(cached) of them; the last may be partly filled
  std::optional<Request> request;
  uint64_t used = 0;  // the tick that last read it

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t pending() const { return size() - cached; }
};

// A session's share of a tick.
struct Part {
  Session* session;
  int64_t rows;
  bool samples;  // reads the last pending token, so it gets the next one
};

struct Finished {
  SampleDone done;
  SampleResult result;
  std::exception_ptr error;
};

template <class... Parts>
std::exception_ptr failure(const char* code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  return std::make_exception_ptr(Failure(code, message.str()));
}

int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

int64_t common_prefix(const Session& a, const Session& b, int64_t limit) {
  limit = std::min({limit, a.size(), b.size()});
  return std::mismatch(a.tokens.begin(), a.tokens.begin() + limit, b.tokens.begin()).first - a.tokens.begin();
}

// Positions that `session` could take over from `donor`, of whom `known` tokens are (or will be) in pages. Whole
// pages only, and never the last token, which must be read to get its logits.
int64_t shareable(const Session& session, const Session& donor, int64_t known) {
  const int64_t common = common_prefix(session, donor, std::min(known, session.size() - 1));
  return common / kPageTokens * kPageTokens;
}

}  // namespace

struct Sampler::Impl {
  Impl(Device& device, Parameters& parameters, SamplerOptions options)
      : parameters(parameters),
        options(options),
        stream(device.stream()),
        executor(device, *stream),
        decoder(parameters.config(), device.ops(), parameters.rope(), device.ops().mlp_rows()),
        pool(device, *stream, parameters.config(), options.max_pages),
        cache_version(parameters.version()) {
    require(options.max_batch_tokens >= 1, "max_batch_tokens must be at least 1, got ", options.max_batch_tokens);
    require(options.max_pages >= 0, "max_pages must not be negative, got ", options.max_pages);
  }

  Session& find(int64_t id) {
    const auto at = sessions.find(id);
    require(at != sessions.end(), "there is no session ", id, "; it was closed or never opened");
    return at->second;
  }

  Session& find_idle(int64_t id, const char* what) {
    Session& session = find(id);
    require(!session.request, "session ", id, " is sampling; wait for its result before it can be ", what);
    return session;
  }

  void drop_cache(Session& session) {
    for (int32_t page : session.pages) pool.give_back(page);
    session.pages.clear();
    session.cached = 0;
  }

  // Takes the request out of the session. On an error the session becomes what it was before the request.
  Finished end(Session& session, std::exception_ptr error, bool stopped = false) {
    Request request = std::move(*session.request);
    session.request.reset();
    Finished finished{std::move(request.done), {}, error};
    if (error) {
      session.tokens.resize(request.start);
      session.cached = std::min(session.cached, session.size() - 1);
      while (static_cast<int64_t>(session.pages.size()) > pages_for(session.cached)) {
        pool.give_back(session.pages.back());
        session.pages.pop_back();
      }
    } else {
      finished.result.tokens.assign(session.tokens.begin() + request.start, session.tokens.end());
      finished.result.logprobs = std::move(request.logprobs);
      finished.result.stopped = stopped;
      finished.result.version = *request.version;
    }
    return finished;
  }

  // --- pages -----------------------------------------------------------------------------------------

  // Starts from the longest prefix that another session has already read (forks of one prompt, turns after a
  // change of weights), so that it is computed once.
  void adopt_prefix(Session& session) {
    const Session* donor = nullptr;
    int64_t best = session.cached + kPageTokens - 1;  // less than a page is not worth a search
    for (const auto& [id, other] : sessions) {
      if (&other == &session || other.cached <= best) continue;
      const int64_t common = shareable(session, other, other.cached);
      if (common > best) {
        best = common;
        donor = &other;
      }
    }
    if (!donor) return;
    std::vector<int32_t> pages(donor->pages.begin(), donor->pages.begin() + best / kPageTokens);
    for (int32_t page : pages) pool.share(page);
    drop_cache(session);
    session.pages = std::move(pages);
    session.cached = best;
  }

  // Whether a session of this tick is reading tokens that `session` shares: then it waits and adopts them.
  bool prefix_under_way(const Session& session, const std::vector<Part>& batch) const {
    return std::any_of(batch.begin(), batch.end(), [&](const Part& part) {
      return shareable(session, *part.session, part.session->size()) >= session.cached + kPageTokens;
    });
  }

  // A page for `session`; when there is none, another session gives up its cache: the one idle for longest, else
  // the youngest request that is younger than this one, so that the oldest always comes to its end.
  std::optional<int32_t> take_page(const Session& session, const std::vector<Part>& batch) {
    while (true) {
      if (const auto page = pool.take()) return page;
      Session* victim = nullptr;
      for (auto& [id, other] : sessions) {
        if (&other == &session || other.pages.empty()) continue;
        if (std::any_of(batch.begin(), batch.end(), [&](const Part& part) { return part.session == &other; })) continue;
        if (other.request && other.request->order < session.request->order) continue;
        if (!victim || gives_way_before(other, *victim)) victim = &other;
      }
      if (!victim) return std::nullopt;
      drop_cache(*victim);
    }
  }

  static bool gives_way_before(const Session& a, const Session& b) {
    if (!a.request != !b.request) return !a.request;
    return a.request ? a.request->order > b.request->order : a.used < b.used;
  }

  // Makes room for up to `rows` more tokens; returns for how many there is room.
  int64_t make_room(Session& session, int64_t rows, const std::vector<Part>& batch) {
    if (session.cached % kPageTokens && pool.shared(session.pages.back())) {
      // A fork writes: it gets its own copy of the last page, or the page itself if who shared it had to give way.
      if (const auto page = take_page(session, batch)) {
        pool.copy(session.pages.back(), *page);
        pool.give_back(session.pages.back());
        session.pages.back() = *page;
      } else if (pool.shared(session.pages.back())) {
        return 0;
      }
    }
    const int64_t wanted = pages_for(session.cached + rows);
    while (static_cast<int64_t>(session.pages.size()) < wanted) {
      const auto page = take_page(session, batch);
      if (!page) break;
      session.pages.push_back(*page);
    }
    const int64_t room = static_cast<int64_t>(session.pages.size()) * kPageTokens - session.cached;
    return std::min(rows, room);
  }

  // --- one tick --------------------------------------------------------------------------------------

  void refresh() {
    if (parameters.version() == cache_version) return;
    for (auto& [id, session] : sessions) drop_cache(session);
    cache_version = parameters.version();
  }

  std::vector<Part> plan(std::vector<Finished>& finished) {
    std::vector<Session*> decodes, prefills;
    for (auto& [id, session] : sessions) {
      if (session.request) (session.pending() == 1 ? decodes : prefills).push_back(&session);
    }
    // Decodes take turns when they are more than a tick holds; prefills run in the order of arrival.
    std::sort(decodes.begin(), decodes.end(), [](const Session* a, const Session* b) {
      return std::pair(a->used, a->request->order) < std::pair(b->used, b->request->order);
    });
    std::sort(prefills.begin(), prefills.end(),
              [](const Session* a, const Session* b) { return a->request->order < b->request->order; });

    std::vector<Part> batch;
    int64_t room = options.max_batch_tokens;
    const auto add = [&](Session* session) {
      const int64_t rows = make_room(*session, std::min(session->pending(), room), batch);
      if (rows <= 0) return;
      batch.push_back({session, rows, rows == session->pending()});
      room -= rows;
    };
    // take_page() may have turned a decode of this list into a prefill: add() reads what is pending now.
    for (Session* session : decodes) {
      if (room == 0) break;
      add(session);
    }
    for (Session* session : prefills) {
      if (room == 0) break;
      if (session->pending() > kPageTokens) {
        adopt_prefix(*session);
        if (prefix_under_way(*session, batch)) continue;
      }
      add(session);
    }
    if (batch.empty()) {  // the oldest request may take every page that there is, and did
      prefills.insert(prefills.end(), decodes.begin(), decodes.end());
      Session& oldest = **std::min_element(prefills.begin(), prefills.end(), [](const Session* a, const Session* b) {
        return a->request->order < b->request->order;
      });
      drop_cache(oldest);
      finished.push_back(end(oldest, failure("OUT_OF_MEMORY", "the sampler's ", pool.limit(), " pages of ", kPageTokens,
                                             " tokens cannot hold a session of ", oldest.size(),
                                             " tokens; raise maxPages or use a machine with more memory")));
    }
    return batch;
  }

  // Runs the parts' pending tokens through the decoder and samples a token for each part that asks for one. What comes
  // after those is padding.
  void forward(const std::vector<Part>& batch, std::vector<int32_t>& sampled, std::vector<float>& logprobs) {
    std::vector<int32_t> tokens, positions, last_rows;
    std::vector<float> inverse_temperature, uniforms;
    std::vector<PagedSequence> sequences;
    int64_t longest = 0;
    for (const Part& part : batch) {
      const Session& session = *part.session;
      const int32_t row = static_cast<int32_t>(tokens.size());
      const int32_t position = static_cast<int32_t>(session.cached);
      longest = std::max(longest, session.cached + part.rows);
      sequences.push_back({{row, static_cast<int32_t>(part.rows), position}, session.pages});
      sequences.back().pages.resize(pages_for(position + part.rows));
      for (int64_t i = 0; i < part.rows; ++i) {
        tokens.push_back(session.tokens[position + i]);
        positions.push_back(static_cast<int32_t>(position + i));
      }
      if (!part.samples) continue;
      const SampleRequest& request = session.request->options;
      last_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
      inverse_temperature.push_back(request.temperature > 0 ? 1.0f / request.temperature : 0.0f);
      uniforms.push_back(uniform01(request.seed, static_cast<uint64_t>(session.size())));
    }

    const Ops& ops = decoder.ops();
    // Every part reads one token and gets one: a pass that may be recorded.
    const bool decodes = last_rows.size() == tokens.size();
    if (decodes)
      for (int64_t row = std::ssize(tokens), end = ops.decode_rows(row); row < end; ++row) {
        sequences.push_back({{static_cast<int32_t>(row), 1, kPadding}, {}});
        tokens.push_back(0);
        positions.push_back(0);
        last_rows.push_back(static_cast<int32_t>(row));
        inverse_temperature.push_back(0);
        uniforms.push_back(0);
      }

    const int64_t rows = std::ssize(tokens), samples = std::ssize(last_rows);
    Schedule schedule;
    const Slot token_slot = schedule.slot(DType::i32, {rows}), position_slot = schedule.slot(DType::i32, {rows});
    const Slot index = schedule.slot(DType::i32, {samples}), choice = schedule.slot(DType::i32, {samples});
    const Slot temperature = schedule.slot(DType::f32, {samples}), uniform = schedule.slot(DType::f32, {samples});
    const Slot logprob = schedule.slot(DType::f32, {samples});
    schedule.upload(token_slot, tokens.data());
    schedule.upload(position_slot, positions.data());
    schedule.upload(index, last_rows.data());
    schedule.upload(temperature, inverse_temperature.data());
    schedule.upload(uniform, uniforms.data());
    PagedAttend attend(parameters.config(), ops, std::move(sequences), pool);
    if (decodes) attend.place(schedule);
    const DecoderPass pass = decoder.forward(schedule, parameters, attend, token_slot, position_slot, Keep::nothing);
    for (int64_t begin = 0; begin < samples; begin += kLogitRows) {
      const int64_t count = std::min(kLogitRows, samples - begin);
      const auto part = [&](const Slot& slot) { return slot.rows(begin, count); };
      const Slot logits = decoder.logits(schedule, parameters, pass.hidden, part(index));
      schedule.add("sample", -1, static_cast<int64_t>(logits.bytes()), 0,
                   [&ops, logits, temperature = part(temperature), uniform = part(uniform), choice = part(choice),
                    logprob = part(logprob)](const Frame& frame) {
                     ops.sample(frame.stream, frame[logits], frame[temperature], frame[uniform], frame[choice],
                                frame[logprob]);
                   });
      schedule.release(logits);
    }
    sampled.resize(last_rows.size());
    logprobs.resize(last_rows.size());
    schedule.download(sampled.data(), choice);
    schedule.download(logprobs.data(), logprob);
    const Drain drain{*stream};
    if (decodes) {
      executor.run(schedule, {rows, ops.decode_keys(longest)});
    } else {
      executor.run(schedule);
    }
    stream->synchronize();
  }

  std::exception_ptr not_finite(float logprob) {
    const std::string bad = parameters.first_non_finite(*stream, parameters.master());
    return failure("NON_FINITE", "the logprob of a sampled token is ", logprob,
                   bad.empty() ? ": the weights are finite, the logits are not; load an earlier checkpoint"
                               : ": the weights of " + bad + " are not finite; load or initialise them again");
  }

  void apply(const std::vector<Part>& batch, const std::vector<int32_t>& sampled, const std::vector<float>& logprobs,
             std::vector<Finished>& finished) {
    size_t at = 0;
    std::exception_ptr broken;  // why logprobs of this tick are not finite
    for (const Part& part : batch) {
      Session& session = *part.session;
      Request& request = *session.request;
      const bool decode = part.rows == 1 && session.cached >= static_cast<int64_t>(request.start);
      if (!decode) usage.prefilled += part.rows;
      session.cached += part.rows;
      session.used = ticks;
      if (!part.samples) continue;
      const int32_t token = sampled[at];
      const float logprob = logprobs[at++];
      if (!std::isfinite(logprob)) {
        if (!broken) broken = not_finite(logprob);
        drop_cache(session);
        finished.push_back(end(session, broken));
        continue;
      }
      session.tokens.push_back(token);
      request.logprobs.push_back(logprob);
      if (!request.version) request.version = cache_version;
      usage.decoded += 1;
      const std::vector<int32_t>& stop = request.options.stop;
      const bool stopped = std::find(stop.begin(), stop.end(), token) != stop.end();
      const bool full = static_cast<int32_t>(request.logprobs.size()) == request.options.max_tokens ||
                        session.size() == parameters.config().positions();
      if (stopped || full) finished.push_back(end(session, nullptr, stopped));
    }
  }

  void tick() {
    std::vector<Finished> finished;
    std::vector<Part> batch;
    ++ticks;
    try {
      refresh();
      batch = plan(finished);
      if (!batch.empty()) {
        std::vector<int32_t> sampled;
        std::vector<float> logprobs;
        forward(batch, sampled, logprobs);
        apply(batch, sampled, logprobs, finished);
      }
    } catch (...) {
      fault(batch, finished);
    }
    for (Finished& one : finished) one.done(std::move(one.result), one.error);
  }

  // Ends the requests of a tick that failed; without a batch the plan itself failed, and all of them end. What
  // their pages hold is unknown now.
  void fault(const std::vector<Part>& batch, std::vector<Finished>& finished) {
    const std::exception_ptr error = std::current_exception();
    for (auto& [id, session] : sessions) {
      const bool concerned = batch.empty() || std::any_of(batch.begin(), batch.end(),
                                                          [&](const Part& part) { return part.session == &session; });
      if (!session.request || !concerned) continue;
      drop_cache(session);
      finished.push_back(end(session, error));
    }
  }

  Parameters& parameters;
  SamplerOptions options;
  std::unique_ptr<Stream> stream;
  Executor executor;
  Decoder decoder;
  PagePool pool;
  std::map<int64_t, Session> sessions;
  int64_t next_id = 1;
  uint64_t next_order = 0, ticks = 0;
  int64_t cache_version;
  Usage usage;
};

Sampler::Sampler(Device& device, Parameters& parameters, SamplerOptions options)
    : impl_(std::make_unique<Impl>(device, parameters, options)) {}

Sampler::~Sampler() {
  for (auto& [id, session] : impl_->sessions) {
    if (!session.request) continue;
    Finished finished = impl_->end(session, failure("DISPOSED", "the rank was disposed while a session sampled"));
    finished.done({}, finished.error);
  }
}

int64_t Sampler::open() {
  const int64_t id = impl_->next_id++;
  impl_->sessions[id];
  return id;
}

int64_t Sampler::fork(int64_t session) {
  const Session& parent = impl_->find_idle(session, "forked");
  const int64_t id = impl_->next_id++;
  impl_->sessions[id] = parent;
  for (int32_t page : parent.pages) impl_->pool.share(page);
  return id;
}

void Sampler::extend(int64_t session, const int32_t* tokens, size_t n) {
  Session& to = impl_->find_idle(session, "extended");
  const DecoderConfig& config = impl_->parameters.config();
  for (size_t i = 0; i < n; ++i) {
    require(tokens[i] >= 0 && tokens[i] < config.vocab_size, "token ", tokens[i], " at index ", i,
            " is outside the vocabulary of ", config.vocab_size);
  }
  require(to.size() + static_cast<int64_t>(n) <= config.positions(), "session ", session, " of ", to.size(),
          " tokens cannot take ", n, " more: the model's context is ", config.positions());
  to.tokens.insert(to.tokens.end(), tokens, tokens + n);
}

void Sampler::sample(int64_t session, SampleRequest request, SampleDone done) {
  Session& from = impl_->find_idle(session, "sampled again");
  const int32_t limit = impl_->parameters.config().positions();
  require(from.size() > 0, "session ", session, " holds no tokens; extend it before sampling");
  require(from.size() < limit, "session ", session, " is full: the model's context is ", limit);
  require(request.max_tokens >= 1, "max_tokens must be at least 1, got ", request.max_tokens);
  require(request.temperature == 0 || (request.temperature >= 1e-3f && request.temperature <= 1e3f),
          "temperature must be 0 (greedy) or lie in [0.001, 1000], got ", request.temperature);
  const size_t start = from.tokens.size();
  from.request = Request{std::move(request), std::move(done), start, impl_->next_order++, {}, {}};
}

void Sampler::cancel(int64_t session) {
  Session& of = impl_->find(session);
  if (!of.request) return;
  Finished finished = impl_->end(of, failure("ABORTED", "sampling was aborted by its caller"));
  finished.done({}, finished.error);
}

void Sampler::close(int64_t session) {
  cancel(session);
  impl_->drop_cache(impl_->find(session));
  impl_->sessions.erase(session);
}

bool Sampler::busy() const {
  return std::any_of(impl_->sessions.begin(), impl_->sessions.end(),
                     [](const auto& entry) { return entry.second.request.has_value(); });
}

void Sampler::tick() {
  if (busy()) impl_->tick();
}

Sampler::Usage Sampler::usage() const {
  Usage usage = impl_->usage;
  usage.sessions = static_cast<int64_t>(impl_->sessions.size());
  usage.pages = impl_->pool.used();
  return usage;
}

}  // namespace tokenring
