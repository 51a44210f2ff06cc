// What a build that counts tells of a launch; count.cpp. In other builds nothing is called.
#pragma once
#include "shim.h"

namespace counting {
enum Kind { LOAD, STORE, DP4A, SHUFFLE, VOTE, BARRIER, MMA, BLOCK, KINDS };
#if defined(SHIM_COUNT)
void start_launch(const shim::Launch& launch);
void start_block();
void execute(Kind kind, const void* site, unsigned lane);  // one lane carries out the instruction at `site`
void end_phase();                                          // all that was carried out since the last call is one warp's
#else
inline void start_launch(const shim::Launch&) {}
inline void start_block() {}
inline void execute(Kind, const void*, unsigned) {}
inline void end_phase() {}
#endif
}  // namespace counting
