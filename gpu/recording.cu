// gpu/recording.cu - a step as one graph: its launches are recorded once and started as a whole.
//
// Before a kernel runs, the host has to prepare its launch: check the arguments, write a command, tell the
// GPU. A step has more than a hundred launches, and for a short kernel that preparation can be a large
// part of its time. Nothing in a launch changes from step to step, though; what does change lies in the
// GPU's memory (device.h). CUDA can note a sequence of launches, a *graph*, prepare them once, and start
// all of it with one call. The GPU then goes from kernel to kernel by itself. CUDA Programming Guide, "CUDA
// Graphs". How much it gains here waits for a GPU to be measured.
//
// A graph also says what has to wait for what. In a stream, where launches queue, each waits for the one
// before. But the gradient of a layer's weights is needed by no other layer, only by SGD at the end:
//
//     main branch    dz of b ---> dx of b ---> dz of a ---> dx of a ---> ..  ---> SGD
//                         \                        \                         /
//     side branch          `---> dw of b ----------`---> dw of a ---> .. --'
//
// In stage 4 (width 64, batch 128) dx is 128 blocks, where an H100 has room for 264, and each kernel ends
// with processors that have run out of blocks. Then blocks of the other branch can use them. An arrow is an
// *edge*. Where an edge is missing, the result is wrong only when the timing is bad: network.c draws which
// buffers are read and overwritten. The simulator replays the side branch as early and as late as its edges
// allow, and its watcher reports what two branches do to the same bytes with no edge between.
//
// How CUDA records: while a stream is being *captured*, what would be queued there becomes a node. An
// event that is recorded in one stream and waited for in another becomes an edge, and draws the other
// stream into the capture (the same chapter, "Stream Capture"). Memory cannot be allocated meanwhile. So
// the operations are called twice: the first time, launches are left out, and all that remains is that
// the workspace grows to what they need, and that CUDA loads their kernels.
//
// Checked by `make check` (tests/recording_test.c): the same bits as without, early and late, watched.
#include "gpu.h"

namespace GPU {

enum phase { AT_ONCE, LEFT_OUT, RECORDED }; // what becomes of operations
static phase now = AT_ONCE;
static bool on_side;

bool is_on_side_branch() {
  return on_side;
}

#ifdef __CUDACC__

bool launches_are_left_out;

enum { MAIN, SIDE, MOST_MARKS = 64 };
static cudaStream_t streams[2];
static cudaEvent_t forked, marks[MOST_MARKS]; // mark i is marks[i - 1]
static int mark_count;

static void make_streams() {
  for (cudaStream_t &s : streams)
    check_cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreate");
  check_cuda(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming), "cudaEventCreate");
  for (cudaEvent_t &mark : marks)
    check_cuda(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming), "cudaEventCreate");
}

cudaStream_t stream_at_work() {
  if (!streams[MAIN]) make_streams();
  return streams[now == RECORDED && on_side ? SIDE : MAIN];
}

static void set_phase(phase p) {
  now = p;
  launches_are_left_out = p == LEFT_OUT;
}

static void begin_recording() {
  mark_count = 0;
  check_cuda(cudaStreamBeginCapture(stream_at_work(), cudaStreamCaptureModeGlobal),
             "recording a step");
}

static recording *end_recording() {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  check_cuda(cudaStreamEndCapture(streams[MAIN], &graph), "recording a step");
  check_cuda(cudaGraphInstantiateWithFlags(&ready, graph, 0), "making a recorded step ready");
  check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return (recording *)ready;
}

static void replay(const recording *r) {
  check_cuda(cudaGraphLaunch((cudaGraphExec_t)r, stream_at_work()), "starting a recorded step");
}

static void forget(recording *r) {
  if (r) check_cuda(cudaGraphExecDestroy((cudaGraphExec_t)r), "cudaGraphExecDestroy");
}

static void draw_edge(cudaEvent_t event, int from, int to) {
  check_cuda(cudaEventRecord(event, streams[from]), "recording a step");
  check_cuda(cudaStreamWaitEvent(streams[to], event, 0), "recording a step");
}

static void fork_side() {
  draw_edge(forked, MAIN, SIDE);
}

static int mark_side() {
  if (mark_count == MOST_MARKS) check_cuda(cudaErrorInvalidValue, "too many marks in a recording");
  check_cuda(cudaEventRecord(marks[mark_count++], streams[SIDE]), "recording a step");
  return mark_count;
}

static void join_side(int mark) {
  check_cuda(cudaStreamWaitEvent(streams[MAIN], marks[mark - 1], 0), "recording a step");
}

#else

static simt_list *list;

static void set_phase(phase p) {
  static const simt_mode modes[] = {RUN_LAUNCHES, LEAVE_OUT_LAUNCHES, NOTE_LAUNCHES};
  now = p;
  simt_launches = modes[p];
}

static void begin_recording() {
  list = simt_begin_list();
}

static recording *end_recording() {
  return (recording *)list;
}

static void replay(const recording *r) {
  simt_run_list((const simt_list *)r);
}

static void forget(recording *r) {
  simt_free_list((simt_list *)r);
}

static void fork_side() {
  simt_on_side(true);
}

static int mark_side() {
  simt_on_side(false);
  return simt_side_mark();
}

static void join_side(int mark) {
  simt_wait_for_side(mark);
}

#endif

static int last_mark;

static void side_begins() {
  if (now == RECORDED) fork_side();
  on_side = now != AT_ONCE; // left out, too: the workspace that grows is the side branch's
}

static int side_ends() {
  on_side = false;
  return now == RECORDED ? last_mark = mark_side() : 0;
}

static void wait_for_side(int mark) {
  if (now == RECORDED && mark) join_side(mark);
}

static recording *record(void (*operations)(void *of), void *of) {
  set_phase(LEFT_OUT);
  operations(of);
  set_phase(RECORDED);
  last_mark = 0;
  begin_recording();
  operations(of);
  wait_for_side(last_mark);
  set_phase(AT_ONCE);
  return end_recording();
}

const recording_table our_recorder = {record,      replay,    forget,
                                      side_begins, side_ends, wait_for_side};

} // namespace GPU
