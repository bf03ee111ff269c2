// An NVIDIA GPU for programs that are linked to CUDA's libraries, on the CPU: as much of the driver, cuBLAS, cuDNN and cuRAND as
// Darkroom and candle call. What they launch is computed at once, by the kernels' own sources.
//
// It is strict where a GPU would be silent: new memory and what was freed hold no numbers, and what must not happen while a stream is
// captured fails as the driver's manual says. With `EMULATED_GPU_TRACE` it writes what was asked of it to the file of that name.

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <cublas_v2.h>
#include <cuda.h>
#include <cudnn.h>
#include <curand.h>

#include "fibers.hpp"
#include "formats.hpp"

namespace {

constexpr size_t MEMORY_BYTES = size_t(8) << 30;
// As new and freed memory is filled: no number in any format.
constexpr int NO_NUMBER = 0xff;
// What a convolution says it needs besides its tensors.
constexpr size_t WORKSPACE_BYTES = 4096;

// One call at a time, and one kernel.
std::recursive_mutex mutex;
#define ONE_AT_A_TIME std::lock_guard<std::recursive_mutex> guard(mutex)

[[noreturn]] void fail(const std::string& reason) {
    std::fprintf(stderr, "emulated GPU: %s\n", reason.c_str());
    std::abort();
}

void trace(const std::string& event) {
    static FILE* file = [] {
        const char* path = std::getenv("EMULATED_GPU_TRACE");
        return path ? std::fopen(path, "w") : nullptr;
    }();
    if (!file) return;
    std::fprintf(file, "%s\n", event.c_str());
    std::fflush(file);
}

using Node = std::function<void()>;

} // namespace

struct CUgraph_st {
    std::vector<Node> nodes;
    // Memory that its nodes allocate, at addresses that stay.
    std::map<CUdeviceptr, size_t> memory;
    // Of that, what they do not free.
    std::set<CUdeviceptr> open;
};

struct CUgraphExec_st {
    std::vector<Node> nodes;
    std::map<CUdeviceptr, size_t> memory;
    std::set<CUdeviceptr> open;
    bool frees_on_launch;
    bool has_open = false;
};

struct CUstream_st {
    std::unique_ptr<CUgraph_st> capture;
    bool is_invalid = false;
    std::thread::id by;
};

struct CUevent_st {
    const CUgraph_st* captured_by = nullptr;
};

struct CUfunc_st {
    std::string name;
    // By PTX's types.
    std::vector<std::string> parameters;
    void* address = nullptr;
};

struct CUmod_st {
    std::map<std::string, CUfunc_st> functions;
};

namespace {

std::map<CUdeviceptr, size_t> memory;
size_t used_bytes;
std::set<CUstream> streams;

void clear(CUdeviceptr address, size_t bytes) { std::memset(reinterpret_cast<void*>(address), NO_NUMBER, bytes); }

// Does `run` now, or when the graph is launched that `stream` is captured to.
CUresult enqueue(CUstream stream, std::string name, std::function<void()> run) {
    if (!stream || !stream->capture) {
        trace(name);
        run();
        return CUDA_SUCCESS;
    }
    // After the first failure all fails until the end.
    if (stream->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    trace("captured " + name);
    stream->capture->nodes.push_back(std::move(run));
    return CUDA_SUCCESS;
}

// What a stream is asked for that it must not be asked for while it is captured.
CUresult forbid(CUstream stream, const char* call, CUresult error) {
    trace(std::string("forbidden ") + call);
    stream->is_invalid = true;
    return error;
}

// Whether this thread captures a stream: with `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL` that forbids it some calls.
CUstream captured_here() {
    for (CUstream stream : streams) {
        if (stream->capture && stream->by == std::this_thread::get_id()) return stream;
    }
    return nullptr;
}

CUresult unless_capturing(const char* call) {
    CUstream stream = captured_here();
    return stream ? forbid(stream, call, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) : CUDA_SUCCESS;
}

CUresult allocate(CUdeviceptr* address, size_t bytes) {
    if (used_bytes + bytes > MEMORY_BYTES) return CUDA_ERROR_OUT_OF_MEMORY;
    void* block = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    if (!block) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = CUdeviceptr(block);
    clear(*address, bytes);
    return CUDA_SUCCESS;
}

CUresult release(CUdeviceptr address) {
    auto found = memory.find(address);
    if (found == memory.end()) return CUDA_ERROR_INVALID_VALUE;
    used_bytes -= found->second;
    clear(address, found->second);
    std::free(reinterpret_cast<void*>(address));
    memory.erase(found);
    return CUDA_SUCCESS;
}

// The kernels that PTX has.
std::map<std::string, CUfunc_st> entries(std::string_view text) {
    std::map<std::string, CUfunc_st> found;
    constexpr std::string_view ENTRY = ".entry ";
    for (size_t at = text.find(ENTRY); at != text.npos; at = text.find(ENTRY, at)) {
        at += ENTRY.size();
        size_t open = text.find('(', at), close = text.find(')', open);
        std::string name(text.substr(at, open - at));
        std::vector<std::string> parameters;
        std::string_view list = text.substr(open + 1, close - open - 1);
        for (size_t start = list.find(".param "); start != list.npos; start = list.find(".param ", start + 1)) {
            std::string_view rest = list.substr(start + 7);
            // A structure of n bytes: `.align 2 .b8 name[2]`.
            parameters.emplace_back(rest.starts_with(".align") ? ".align" : rest.substr(0, rest.find(' ')));
        }
        found[name] = {name, std::move(parameters)};
        at = close;
    }
    return found;
}

// Whole numbers and addresses of a call, in order, and numbers with a point: the C calling convention of x86-64 passes the first six
// of the former and the first eight of the latter in registers of their own, wherever they stand.
struct Arguments {
    uint64_t whole[24] = {};
    double pointed[8] = {};
};

void call(void* address, const Arguments& a) {
    const uint64_t* w = a.whole;
    const double* p = a.pointed;
    using W = uint64_t;
    using P = double;
    using Kernel = void (*)(W, W, W, W, W, W, P, P, P, P, P, P, P, P, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W);
    reinterpret_cast<Kernel>(address)(
        w[0], w[1], w[2], w[3], w[4], w[5], p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], w[6], w[7], w[8], w[9], w[10], w[11], w[12],
        w[13], w[14], w[15], w[16], w[17], w[18], w[19], w[20], w[21], w[22], w[23]);
}

Arguments arguments(const CUfunc_st& function, void** values) {
    Arguments all;
    size_t whole = 0, pointed = 0;
    for (size_t index = 0; index < function.parameters.size(); index++) {
        const std::string& type = function.parameters[index];
        bool is_pointed = type == ".f32" || type == ".f64";
        size_t bytes = type == ".align" ? 2 : std::stoul(type.substr(2)) / 8;
        if (whole == 24 || pointed == 8) fail(function.name + " has too many parameters");
        void* place = is_pointed ? static_cast<void*>(&all.pointed[pointed++]) : &all.whole[whole++];
        std::memcpy(place, values[index], bytes);
    }
    return all;
}

} // namespace

// ---------------------------------------------------------------------------------------------------------------- driver

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

CUresult cuGetErrorString(CUresult error, const char** text) {
    static thread_local std::string message;
    message = "error " + std::to_string(int(error)) + " of the emulated GPU";
    *text = message.c_str();
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) { return cuGetErrorString(error, text); }

CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 1; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    *context = reinterpret_cast<CUcontext>(&memory);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxDestroy(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuCtxGetCurrent(CUcontext* context) { return cuDevicePrimaryCtxRetain(context, 0); }

CUresult cuCtxSynchronize() {
    ONE_AT_A_TIME;
    // Whoever captures, whoever waits.
    for (CUstream stream : streams) {
        if (stream->capture) return forbid(stream, "cuCtxSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    trace("synchronize");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice) {
    *pool = reinterpret_cast<CUmemoryPool>(&used_bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool, size_t) { return CUDA_SUCCESS; }
CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void*) { return CUDA_SUCCESS; }

CUresult cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, void* value) {
    ONE_AT_A_TIME;
    *static_cast<uint64_t*>(value) = used_bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    ONE_AT_A_TIME;
    *free = MEMORY_BYTES - used_bytes;
    *total = MEMORY_BYTES;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
    ONE_AT_A_TIME;
    if (CUresult error = unless_capturing("cuMemAlloc")) return error;
    if (CUresult error = allocate(address, bytes)) return error;
    memory[*address] = bytes;
    used_bytes += bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    ONE_AT_A_TIME;
    if (CUresult error = unless_capturing("cuMemFree")) return error;
    return release(address);
}

CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream stream) {
    ONE_AT_A_TIME;
    if (!stream || !stream->capture) return cuMemAlloc(address, bytes);
    if (stream->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (CUresult error = allocate(address, bytes)) return error;
    stream->capture->memory[*address] = bytes;
    stream->capture->open.insert(*address);
    return enqueue(stream, "allocate", [address = *address, bytes] { clear(address, bytes); });
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
    ONE_AT_A_TIME;
    if (!stream || !stream->capture) return release(address);
    if (stream->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    auto found = stream->capture->memory.find(address);
    if (found == stream->capture->memory.end() || !stream->capture->open.erase(address)) {
        // What was allocated before cannot be freed by a graph.
        return forbid(stream, "cuMemFreeAsync", CUDA_ERROR_INVALID_VALUE);
    }
    return enqueue(stream, "free", [address, bytes = found->second] { clear(address, bytes); });
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
    ONE_AT_A_TIME;
    // The host's memory is read when the copy is launched.
    return enqueue(stream, "from host " + std::to_string(bytes), [=] { std::memcpy(reinterpret_cast<void*>(target), source, bytes); });
}

CUresult cuMemcpyDtoHAsync(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
    ONE_AT_A_TIME;
    return enqueue(stream, "to host " + std::to_string(bytes), [=] { std::memcpy(target, reinterpret_cast<void*>(source), bytes); });
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream stream) {
    ONE_AT_A_TIME;
    return enqueue(stream, "copy", [=] { std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), bytes); });
}

CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
    ONE_AT_A_TIME;
    return enqueue(stream, "fill", [=] { std::memset(reinterpret_cast<void*>(target), value, bytes); });
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    ONE_AT_A_TIME;
    if (CUresult error = unless_capturing("cuModuleLoadData")) return error;
    *module = new CUmod_st{entries(static_cast<const char*>(image))};
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
    delete module;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    ONE_AT_A_TIME;
    auto found = module->functions.find(name);
    if (found == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
    if (!found->second.address) found->second.address = dlsym(RTLD_DEFAULT, name);
    if (!found->second.address) fail(std::string("the source of kernel ") + name + " is not compiled");
    *function = &found->second;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
    unsigned shared_bytes, CUstream stream, void** values, void** extra) {
    ONE_AT_A_TIME;
    bool is_grid = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_y <= 65535 && grid_z <= 65535;
    bool is_block = block_x > 0 && block_y > 0 && block_z > 0 && block_x * block_y * block_z <= 1024;
    if (!is_grid || !is_block || extra) return CUDA_ERROR_INVALID_VALUE;
    if (shared_bytes > 0) fail(function->name + " wants memory that is shared");
    Arguments all = arguments(*function, values);
    return enqueue(stream, "kernel " + function->name, [=, address = function->address] {
        unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
        emulated::launch(grid, block, [&] { call(address, all); });
    });
}

CUresult cuStreamCreate(CUstream* stream, unsigned) {
    ONE_AT_A_TIME;
    *stream = new CUstream_st;
    streams.insert(*stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    ONE_AT_A_TIME;
    streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
    ONE_AT_A_TIME;
    if (stream && stream->capture) return forbid(stream, "cuStreamSynchronize", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    trace("synchronize");
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    *event = new CUevent_st;
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    delete event;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    ONE_AT_A_TIME;
    event->captured_by = stream && stream->capture ? stream->capture.get() : nullptr;
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    ONE_AT_A_TIME;
    bool is_outside = stream && stream->capture && event->captured_by != stream->capture.get();
    return is_outside ? forbid(stream, "cuStreamWaitEvent", CUDA_ERROR_STREAM_CAPTURE_ISOLATION) : CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule*, const char*) { fail("modules are loaded from memory"); }
CUresult cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream) { fail("there is one GPU"); }

// ---------------------------------------------------------------------------------------------------------------- graphs

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
    ONE_AT_A_TIME;
    if (!stream || stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    trace("begin capture");
    stream->capture = std::make_unique<CUgraph_st>();
    stream->is_invalid = false;
    stream->by = std::this_thread::get_id();
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    ONE_AT_A_TIME;
    *status = !stream || !stream->capture  ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->is_invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                   : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    ONE_AT_A_TIME;
    *graph = nullptr;
    if (!stream || !stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->by != std::this_thread::get_id()) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    std::unique_ptr<CUgraph_st> captured = std::move(stream->capture);
    trace("end capture");
    if (stream->is_invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = captured.release();
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiate(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
    ONE_AT_A_TIME;
    trace("instantiate");
    bool frees = flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    *executable = new CUgraphExec_st{graph->nodes, graph->memory, graph->open, frees};
    return CUDA_SUCCESS;
}

CUresult cuGraphUpload(CUgraphExec, CUstream) { return CUDA_SUCCESS; }

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    ONE_AT_A_TIME;
    if (stream && stream->capture) fail("a graph in a graph");
    trace("launch graph of " + std::to_string(executable->nodes.size()));
    if (executable->has_open && !executable->frees_on_launch) return CUDA_ERROR_INVALID_VALUE;
    for (const Node& run : executable->nodes) run();
    executable->has_open = !executable->open.empty();
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    delete executable;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetGraphMemAttribute(CUdevice, CUgraphMem_attribute, void* value) {
    *static_cast<uint64_t*>(value) = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGraphMemTrim(CUdevice) { return CUDA_SUCCESS; }

CUresult cuGraphDestroy(CUgraph graph) {
    // Its memory stays where it is, for whoever still uses it by mistake shall not crash but compute no numbers.
    for (const auto& [address, bytes] : graph->memory) clear(address, bytes);
    delete graph;
    return CUDA_SUCCESS;
}

} // extern "C"

// ---------------------------------------------------------------------------------------------------------------- cuBLAS

struct cublasContext {
    CUstream stream = nullptr;
};

namespace {

emulated::Format format(cudaDataType type) {
    switch (type) {
    case CUDA_R_32F: return emulated::Format::F32;
    case CUDA_R_16F: return emulated::Format::F16;
    case CUDA_R_16BF: return emulated::Format::Bf16;
    default: fail("a product of numbers of another format");
    }
}

} // namespace

extern "C" {

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
    *handle = new cublasContext;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = CUstream(stream);
    return CUBLAS_STATUS_SUCCESS;
}

// Matrices are column by column; scalars are f32, as sums are.
cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t handle, cublasOperation_t of_a, cublasOperation_t of_b, int m, int n, int k, const void* alpha, const void* a,
    cudaDataType a_type, int a_lead, long long a_stride, const void* b, cudaDataType b_type, int b_lead, long long b_stride,
    const void* beta, void* c, cudaDataType c_type, int c_lead, long long c_stride, int batch, cublasComputeType_t compute,
    cublasGemmAlgo_t) {
    ONE_AT_A_TIME;
    if (compute == CUBLAS_COMPUTE_16F || compute == CUBLAS_COMPUTE_64F) fail("a product with sums that are not f32");
    float scale, rest;
    std::memcpy(&scale, alpha, sizeof scale);
    std::memcpy(&rest, beta, sizeof rest);
    emulated::Format a_format = format(a_type), b_format = format(b_type), c_format = format(c_type);
    CUresult queued = enqueue(handle->stream, "product", [=] {
        for (int64_t number = 0; number < batch; number++) {
            for (int64_t column = 0; column < n; column++) {
                for (int64_t row = 0; row < m; row++) {
                    float sum = 0;
                    for (int64_t term = 0; term < k; term++) {
                        int64_t a_at = of_a == CUBLAS_OP_N ? row + term * a_lead : term + row * a_lead;
                        int64_t b_at = of_b == CUBLAS_OP_N ? term + column * b_lead : column + term * b_lead;
                        sum += emulated::read(a, a_format, number * a_stride + a_at) * emulated::read(b, b_format, number * b_stride + b_at);
                    }
                    int64_t at = number * c_stride + row + column * c_lead;
                    float before = rest == 0 ? 0 : rest * emulated::read(c, c_format, at);
                    emulated::write(c, c_format, at, scale * sum + before);
                }
            }
        }
    });
    return queued ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDgemmStridedBatched(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const double*, const double*, int, long long, const double*, int,
    long long, const double*, double*, int, long long, int) {
    fail("a product of numbers of another format");
}

} // extern "C"

// ----------------------------------------------------------------------------------------------------------------- cuDNN

struct cudnnContext {
    CUstream stream = nullptr;
};

struct cudnnTensorStruct {
    emulated::Format format;
    // `(n, c, h, w)` whatever the order in memory; of filters the first is the number of outputs.
    int64_t sizes[4], strides[4];
    bool channels_last;
};

struct cudnnFilterStruct : cudnnTensorStruct {};

struct cudnnConvolutionStruct {
    int pad_h, pad_w, stride_h, stride_w;
};

namespace {

emulated::Format format(cudnnDataType_t type) {
    switch (type) {
    case CUDNN_DATA_FLOAT: return emulated::Format::F32;
    case CUDNN_DATA_HALF: return emulated::Format::F16;
    case CUDNN_DATA_BFLOAT16: return emulated::Format::Bf16;
    default: fail("a convolution of numbers of another format");
    }
}

void describe(cudnnTensorStruct& target, bool channels_last, cudnnDataType_t type, int n, int c, int h, int w) {
    target.format = format(type);
    target.channels_last = channels_last;
    int64_t sizes[4] = {n, c, h, w};
    std::copy(sizes, sizes + 4, target.sizes);
    int64_t last[4] = {int64_t(h) * w * c, 1, int64_t(w) * c, c}, first[4] = {int64_t(c) * h * w, int64_t(h) * w, w, 1};
    std::copy(channels_last ? last : first, (channels_last ? last : first) + 4, target.strides);
}

} // namespace

extern "C" {

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
    ONE_AT_A_TIME;
    if (unless_capturing("cudnnCreate")) return CUDNN_STATUS_EXECUTION_FAILED;
    *handle = new cudnnContext;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    delete handle;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    handle->stream = CUstream(stream);
    return CUDNN_STATUS_SUCCESS;
}

#define DESCRIPTOR(KIND)                                                                                                       \
    cudnnStatus_t cudnnCreate##KIND##Descriptor(cudnn##KIND##Descriptor_t* descriptor) {                                       \
        *descriptor = new cudnn##KIND##Struct;                                                                                 \
        return CUDNN_STATUS_SUCCESS;                                                                                           \
    }                                                                                                                          \
    cudnnStatus_t cudnnDestroy##KIND##Descriptor(cudnn##KIND##Descriptor_t descriptor) {                                       \
        delete descriptor;                                                                                                     \
        return CUDNN_STATUS_SUCCESS;                                                                                           \
    }
DESCRIPTOR(Tensor)
DESCRIPTOR(Filter)
DESCRIPTOR(Convolution)

cudnnStatus_t cudnnSetTensor4dDescriptor(
    cudnnTensorDescriptor_t tensor, cudnnTensorFormat_t order, cudnnDataType_t type, int n, int c, int h, int w) {
    if (order != CUDNN_TENSOR_NCHW && order != CUDNN_TENSOR_NHWC) return CUDNN_STATUS_NOT_SUPPORTED;
    describe(*tensor, order == CUDNN_TENSOR_NHWC, type, n, c, h, w);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetTensor4dDescriptorEx(cudnnTensorDescriptor_t, cudnnDataType_t, int, int, int, int, int, int, int, int) {
    return CUDNN_STATUS_NOT_SUPPORTED;
}

cudnnStatus_t cudnnSetFilter4dDescriptor(
    cudnnFilterDescriptor_t filter, cudnnDataType_t type, cudnnTensorFormat_t order, int k, int c, int h, int w) {
    if (order != CUDNN_TENSOR_NCHW && order != CUDNN_TENSOR_NHWC) return CUDNN_STATUS_NOT_SUPPORTED;
    describe(*filter, order == CUDNN_TENSOR_NHWC, type, k, c, h, w);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetConvolution2dDescriptor(
    cudnnConvolutionDescriptor_t convolution, int pad_h, int pad_w, int stride_h, int stride_w, int dilation_h, int dilation_w,
    cudnnConvolutionMode_t mode, cudnnDataType_t type) {
    // Sums of 16 bits would be what nobody wants.
    if (dilation_h != 1 || dilation_w != 1 || mode != CUDNN_CROSS_CORRELATION || type != CUDNN_DATA_FLOAT) return CUDNN_STATUS_NOT_SUPPORTED;
    *convolution = {pad_h, pad_w, stride_h, stride_w};
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t, cudnnMathType_t) { return CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(
    cudnnHandle_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t, cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t, int wanted,
    int* count, cudnnConvolutionFwdAlgoPerf_t* found) {
    trace("choose an algorithm");
    *count = std::min(wanted, 1);
    found[0] = {};
    found[0].algo = CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
    found[0].status = CUDNN_STATUS_SUCCESS;
    found[0].memory = WORKSPACE_BYTES;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(
    cudnnHandle_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t, cudnnConvolutionDescriptor_t, cudnnTensorDescriptor_t,
    cudnnConvolutionFwdAlgo_t, size_t* bytes) {
    *bytes = WORKSPACE_BYTES;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnConvolutionForward(
    cudnnHandle_t handle, const void* alpha, cudnnTensorDescriptor_t x_described, const void* x, cudnnFilterDescriptor_t w_described,
    const void* w, cudnnConvolutionDescriptor_t convolution, cudnnConvolutionFwdAlgo_t algorithm, void* workspace,
    size_t workspace_bytes, const void* beta, cudnnTensorDescriptor_t y_described, void* y) {
    ONE_AT_A_TIME;
    // Scalars are f32 for every format.
    float scale, rest;
    std::memcpy(&scale, alpha, sizeof scale);
    std::memcpy(&rest, beta, sizeof rest);
    cudnnTensorStruct from = *x_described, to = *y_described;
    cudnnFilterStruct by = *w_described;
    cudnnConvolutionStruct how = *convolution;
    bool is_precomputed = algorithm == CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
    bool fits = from.sizes[1] == by.sizes[1] && to.sizes[1] == by.sizes[0] && to.sizes[0] == from.sizes[0] &&
                to.sizes[2] == (from.sizes[2] + 2 * how.pad_h - by.sizes[2]) / how.stride_h + 1 &&
                to.sizes[3] == (from.sizes[3] + 2 * how.pad_w - by.sizes[3]) / how.stride_w + 1;
    if (!fits || scale != 1 || rest != 0 || (is_precomputed && workspace_bytes < WORKSPACE_BYTES)) return CUDNN_STATUS_BAD_PARAM;
    // Orders are not mixed, and not every algorithm has both.
    if (from.channels_last != by.channels_last || from.channels_last != to.channels_last) return CUDNN_STATUS_NOT_SUPPORTED;
    if (from.channels_last && !is_precomputed) return CUDNN_STATUS_NOT_SUPPORTED;
    CUresult queued = enqueue(handle->stream, from.channels_last ? "convolution, channels last" : "convolution", [=] {
        if (is_precomputed) std::memset(workspace, NO_NUMBER, workspace_bytes);
        for (int64_t n = 0; n < to.sizes[0]; n++)
            for (int64_t k = 0; k < to.sizes[1]; k++)
                for (int64_t row = 0; row < to.sizes[2]; row++)
                    for (int64_t column = 0; column < to.sizes[3]; column++) {
                        float sum = 0;
                        for (int64_t c = 0; c < from.sizes[1]; c++)
                            for (int64_t r = 0; r < by.sizes[2]; r++)
                                for (int64_t s = 0; s < by.sizes[3]; s++) {
                                    int64_t i = row * how.stride_h + r - how.pad_h, j = column * how.stride_w + s - how.pad_w;
                                    if (i < 0 || j < 0 || i >= from.sizes[2] || j >= from.sizes[3]) continue;
                                    int64_t x_at = n * from.strides[0] + c * from.strides[1] + i * from.strides[2] + j * from.strides[3];
                                    int64_t w_at = k * by.strides[0] + c * by.strides[1] + r * by.strides[2] + s * by.strides[3];
                                    sum += emulated::read(x, from.format, x_at) * emulated::read(w, by.format, w_at);
                                }
                        int64_t at = n * to.strides[0] + k * to.strides[1] + row * to.strides[2] + column * to.strides[3];
                        emulated::write(y, to.format, at, sum);
                    }
    });
    return queued ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}

// ---------------------------------------------------------------------------------------------------------------- cuRAND

curandStatus_t curandCreateGenerator(curandGenerator_t* generator, curandRngType_t) {
    *generator = nullptr;
    return CURAND_STATUS_SUCCESS;
}

curandStatus_t curandDestroyGenerator(curandGenerator_t) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t, unsigned long long) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetStream(curandGenerator_t, cudaStream_t) { return CURAND_STATUS_SUCCESS; }

} // extern "C"
