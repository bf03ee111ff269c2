// Runs the blocks of a kernel one after the other, and the threads of a block in turns: each until it returns, or waits for others.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../emulation.hpp"
#include "fibers.hpp"

namespace {

constexpr size_t STACK_BYTES = 64 << 10;

// Keeps what a function must leave as it was and the stack that it stands on at `from`, and goes on at `to`. (The C library's own
// `swapcontext` asks the system twice each time.)
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.local emulated_switch
emulated_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    void* place;
    int thread;
    dim3 index;
    bool runs;

    // As if it had been switched away from at its beginning.
    explicit Fiber(void (*begin)()) {
        uintptr_t end = reinterpret_cast<uintptr_t>(stack.get() + STACK_BYTES) / 16 * 16;
        void** top = reinterpret_cast<void**>(end) - 8;
        std::fill(top, top + 8, nullptr);
        top[6] = reinterpret_cast<void*>(begin);
        place = top;
    }
};

// Kept for the next block: one for each thread that waits at the same time.
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* current;
void* scheduler;
const std::function<void()>* kernel;

void select(const Fiber& fiber) {
    emulated::thread = fiber.thread;
    threadIdx = fiber.index;
}

// A fiber goes from thread to thread as long as none of them waits.
int next_thread, threads;
dim3 next_index;

void begin_thread(Fiber& fiber) {
    fiber.thread = next_thread++;
    fiber.index = next_index;
    if (++next_index.x == blockDim.x) {
        next_index.x = 0;
        if (++next_index.y == blockDim.y) next_index = {0, 0, next_index.z + 1};
    }
    select(fiber);
}

void run_threads() {
    for (;;) {
        while (next_thread < threads) {
            begin_thread(*current);
            (*kernel)();
            emulated::block.leave();
            emulated::warps[current->thread / emulated::LANES].leave();
        }
        current->runs = false;
        emulated_switch(&current->place, scheduler);
    }
}

void resume(Fiber& fiber) {
    current = &fiber;
    select(fiber);
    emulated_switch(&scheduler, fiber.place);
}

void run_block() {
    threads = int(blockDim.x * blockDim.y * blockDim.z);
    if (threads > emulated::LANES * emulated::WARPS_MAX) {
        std::fprintf(stderr, "emulated GPU: a block of %d threads\n", threads);
        std::abort();
    }
    emulated::block = {threads, 0, 0};
    for (int first = 0; first < threads; first += emulated::LANES) {
        emulated::warps[first / emulated::LANES] = {std::min(emulated::LANES, threads - first), 0, 0};
    }
    next_thread = 0;
    next_index = {0, 0, 0};
    size_t used = 0;
    // Each that has begun goes on in its turn; as long as threads are left, another fiber begins with the next.
    for (bool any = true; any;) {
        any = false;
        for (size_t index = 0; index < used; index++) {
            if (fibers[index]->runs) {
                resume(*fibers[index]);
                any = true;
            }
        }
        while (next_thread < threads) {
            if (used == fibers.size()) fibers.push_back(std::make_unique<Fiber>(run_threads));
            Fiber& fiber = *fibers[used++];
            fiber.runs = true;
            resume(fiber);
            any = true;
        }
    }
}

} // namespace

void emulated::yield() {
    Fiber* mine = current;
    emulated_switch(&mine->place, scheduler);
}

void emulated::launch(const unsigned (&grid)[3], const unsigned (&block)[3], const std::function<void()>& run) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    kernel = &run;
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
        }
    }
}
