// Fibres: stacks that take turns on one OS thread. On x86-64 a switch is a dozen instructions; swapcontext, used
// elsewhere, asks the kernel about signals each time and takes a hundred times as long.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(SHIM_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* tag);
void __tsan_release(void* tag);
}
#endif

#if defined(__x86_64__)
extern "C" void shim_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden shim_switch_stack
.globl shim_switch_stack
shim_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

namespace shim {
#if defined(SHIM_TSAN)
inline void acquire(char* tag) { __tsan_acquire(tag); }
inline void release(char* tag) { __tsan_release(tag); }
#else
inline void acquire(char*) {}
inline void release(char*) {}
#endif

class Fibre {
 public:
  Fibre() = default;
  Fibre(const Fibre&) = delete;
  ~Fibre() {
#if defined(SHIM_TSAN)
    if (stack_) __tsan_destroy_fiber(tsan_);
#endif
    std::free(stack_);
  }

  void adopt() {  // be the stack that runs now
#if defined(SHIM_TSAN)
    tsan_ = __tsan_get_current_fiber();
#endif
  }

  void start(void (*enter)()) {  // make ready to call `enter`, which never returns
    if (!stack_) stack_ = static_cast<char*>(std::malloc(STACK));
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack_) + STACK) & ~uintptr_t{15});
    *--top = nullptr;  // where a return address would be: `enter` finds its stack aligned as after a call
    *--top = reinterpret_cast<void*>(enter);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_, context_.uc_stack.ss_size = STACK, context_.uc_link = nullptr;
    makecontext(&context_, enter, 0);
#endif
#if defined(SHIM_TSAN)
    if (!tsan_) tsan_ = __tsan_create_fiber(0);
#endif
  }

 private:
#if defined(SHIM_LARGE_STACKS)  // without optimisation each variable has its place
  static constexpr size_t STACK = 1 << 18;
#else
  static constexpr size_t STACK = 1 << 16;
#endif
  char* stack_ = nullptr;
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
#if defined(SHIM_TSAN)
  void* tsan_ = nullptr;
#endif
  friend void switch_fibre(Fibre& from, Fibre& to);
};

inline void switch_fibre(Fibre& from, Fibre& to) {
#if defined(SHIM_TSAN)
  constexpr unsigned orders_nothing = 1;
  __tsan_switch_to_fiber(to.tsan_, orders_nothing);
#endif
#if defined(__x86_64__)
  shim_switch_stack(&from.top_, to.top_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
}
}  // namespace shim
