// Runs kernels on the CPU: reads buffers and calls from standard input, writes the buffers back to standard output.
//
// All numbers are little-endian. First the buffers: their count (u32), then for each its bytes (u64 and as many). Then the calls: their
// count (u32), then for each the kernel's name (u32 and as many bytes), grid and block (three u32 each) and the arguments: their count
// (u32), then for each a letter and 8 bytes: `b` the number of a buffer and how many bytes on (u32 each), `n` no buffer, `i` an int,
// `l` an int64_t, `f` a float.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "emulation.hpp"

#include "../../src/engine/kernels/cuda/kernels.cu"

namespace {

[[noreturn]] void fail(const std::string& reason) {
    std::fprintf(stderr, "emulated kernels: %s\n", reason.c_str());
    std::exit(2);
}

struct Buffer {
    uint64_t size;
    // As large as it is, so that the sanitizer knows its end.
    std::unique_ptr<char[]> bytes;
};

struct Argument {
    char kind;
    char payload[8];
};

template <class T> T payload(const Argument& argument) {
    T value;
    std::memcpy(&value, argument.payload, sizeof value);
    return value;
}

// The argument as the kernel's parameter, if it is one of that type: a GPU would not ask.
template <class T> T parameter(const Argument& argument, std::vector<Buffer>& buffers) {
    auto is = [&](char kind) {
        if (argument.kind != kind) fail(std::string("an argument is `") + argument.kind + "`, not `" + kind + "`");
    };
    if constexpr (std::is_pointer_v<T>) {
        if (argument.kind == 'n') return nullptr;
        is('b');
        struct Place { uint32_t number, first; } place = payload<Place>(argument);
        return reinterpret_cast<T>(buffers.at(place.number).bytes.get() + place.first);
    } else if constexpr (std::is_same_v<T, int>) {
        is('i');
        return payload<int>(argument);
    } else if constexpr (std::is_same_v<T, int64_t>) {
        is('l');
        return payload<int64_t>(argument);
    } else {
        static_assert(std::is_same_v<T, float>);
        is('f');
        return payload<float>(argument);
    }
}

using Kernel = std::function<std::function<void()>(const std::vector<Argument>&, std::vector<Buffer>&)>;

template <class... T> Kernel kernel(void (*run)(T...)) {
    return [run](const std::vector<Argument>& arguments, std::vector<Buffer>& buffers) -> std::function<void()> {
        if (arguments.size() != sizeof...(T)) fail("a kernel takes " + std::to_string(sizeof...(T)) + " arguments");
        auto values = [&]<size_t... index>(std::index_sequence<index...>) {
            return std::tuple<T...>{parameter<T>(arguments[index], buffers)...};
        }(std::index_sequence_for<T...>());
        return [run, values] { std::apply(run, values); };
    };
}

#define OF_FORMAT(FORMAT)                                                                                                      \
    {"group_statistics_" #FORMAT, kernel(group_statistics_##FORMAT)}, {"group_apply_" #FORMAT, kernel(group_apply_##FORMAT)},  \
        {"token_norm_" #FORMAT, kernel(token_norm_##FORMAT)}, {"gelu_" #FORMAT, kernel(gelu_##FORMAT)},                        \
        {"gated_gelu_" #FORMAT, kernel(gated_gelu_##FORMAT)}, {"add_" #FORMAT, kernel(add_##FORMAT)},                          \
        {"add_channel_" #FORMAT, kernel(add_channel_##FORMAT)}, {"gated_add_" #FORMAT, kernel(gated_add_##FORMAT)},            \
        {"rotate_" #FORMAT, kernel(rotate_##FORMAT)}, {"transpose_" #FORMAT, kernel(transpose_##FORMAT)}
#define OF_STEPS(STEPS)                                                                                                        \
    {"attention_" #STEPS "_f16", kernel(attention_##STEPS##_f16)}, {"attention_" #STEPS "_bf16", kernel(attention_##STEPS##_bf16)}

const std::map<std::string, Kernel> KERNELS = {
    OF_FORMAT(f32), OF_FORMAT(f16), OF_FORMAT(bf16), OF_STEPS(1), OF_STEPS(2), OF_STEPS(3),
    OF_STEPS(4),    OF_STEPS(5),    OF_STEPS(6),     OF_STEPS(8), OF_STEPS(10),
};

void launch(const std::function<void()>& run) {
    int threads = int(blockDim.x * blockDim.y * blockDim.z);
    if (threads % emulated::LANES != 0 || threads > emulated::LANES * emulated::WARPS_MAX) fail("a block is not made of warps");
    pthread_barrier_init(&emulated::block, nullptr, unsigned(threads));
    for (int warp = 0; warp < threads / emulated::LANES; warp++) {
        pthread_barrier_init(&emulated::warps[warp], nullptr, emulated::LANES);
    }
    auto thread = [&](int number) {
        emulated::thread = number;
        threadIdx = {number % blockDim.x, number / blockDim.x % blockDim.y, number / (blockDim.x * blockDim.y)};
        for (unsigned z = 0; z < gridDim.z; z++) {
            for (unsigned y = 0; y < gridDim.y; y++) {
                for (unsigned x = 0; x < gridDim.x; x++) {
                    blockIdx = {x, y, z};
                    run();
                    __syncthreads();
                }
            }
        }
    };
    std::vector<std::thread> all;
    for (int number = 0; number < threads; number++) all.emplace_back(thread, number);
    for (std::thread& one : all) one.join();
}

void read_bytes(void* target, size_t size) {
    if (std::fread(target, 1, size, stdin) != size) fail("the input ends early");
}

template <class T> T read() {
    T value;
    read_bytes(&value, sizeof value);
    return value;
}

} // namespace

int main() {
    std::vector<Buffer> buffers(read<uint32_t>());
    for (Buffer& buffer : buffers) {
        buffer.size = read<uint64_t>();
        buffer.bytes.reset(new char[buffer.size]);
        read_bytes(buffer.bytes.get(), buffer.size);
    }
    for (uint32_t calls = read<uint32_t>(); calls > 0; calls--) {
        std::string name(read<uint32_t>(), ' ');
        read_bytes(name.data(), name.size());
        for (dim3* size : {&gridDim, &blockDim}) *size = {read<uint32_t>(), read<uint32_t>(), read<uint32_t>()};
        std::vector<Argument> arguments(read<uint32_t>());
        for (Argument& argument : arguments) {
            argument.kind = read<char>();
            read_bytes(argument.payload, sizeof argument.payload);
        }
        auto found = KERNELS.find(name);
        if (found == KERNELS.end()) fail("there is no kernel `" + name + "`");
        launch(found->second(arguments, buffers));
    }
    for (const Buffer& buffer : buffers) std::fwrite(buffer.bytes.get(), 1, buffer.size, stdout);
}
