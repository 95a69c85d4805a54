/*
 * slots.pml - one slot of the process table, its lock in the kernel, and who is dead (design sections 4 and 5).
 *
 * The kernel releases a process's lock when the process is gone, and tells anyone whether a lock is held.  An
 * incarnation is alive from its j3 until it is killed, or frees its entry itself.
 *
 *   join      j1  take the slot's lock
 *             j2  read the entry; FREE: j3.  ALIVE: its owner is dead, for the lock is mine: reap it as in r3, r4; j2
 *             j3  CAS entry {FREE, i} -> {ALIVE, i}; failed: j2
 *   leave     e1  give back what is held, then CAS entry {ALIVE, i} -> {FREE, i + 1}
 *             e2  release the lock
 *   reap      r1  read the entry: {ALIVE, i}
 *             r2  THEN ask for the lock; held: nobody is dead
 *             r3  (A) and (B), queue.pml
 *             r4  CAS entry {ALIVE, i} -> {FREE, i + 1}
 *
 * What must hold: r3 never touches what a live incarnation holds; nobody changes the entry of a live process; no
 * incarnation lives twice; and every dead one is reaped in the end.
 *
 * Size:      NP processes, each with one life in this slot, killed or left at any step; NR reapers, all but the first
 *            may be killed
 * Mistakes:  LOCK_FIRST     r2 before r1: reaps a newcomer
 *            C_STORE        r4 is a store: frees a newcomer's entry
 *            ENTRY_FIRST    j3 before j1: alive without a lock
 *            UNLOCK_FIRST   e2 before e1: reaped while leaving
 *            JOIN_OVER      j2 takes an ALIVE entry over instead of reaping it
 */
#ifndef NP
#define NP 3
#endif
#ifndef NR
#define NR 2
#endif

#define ALIVE(e) ((e) & 1)               /* entry = 2 * incarnation + alive */
#define INC(e)   ((e) >> 1)

byte entry;
byte lock;                               /* who holds it, or 0 */

/* ---- bookkeeping of the specification ---- */
byte living[5];                          /* 1 + the incarnation that process p lives as, or 0; NP is 4 at most */
bool ended[2 * NP + 2];                  /* this incarnation has been reaped, or left */

#define LIVES(inc) \
    (living[1] == (inc) + 1 || living[2] == (inc) + 1 || living[3] == (inc) + 1 || living[4] == (inc) + 1)
inline born(p, e) { assert(!LIVES(INC(e)) && !ended[INC(e)]); living[p] = INC(e) + 1 }

#define J1 0
#define J2 1
#define J3 2
#define JA 3
#define JC 4
#define LIVE 5
#define E1 6
#define E2 7
#define GONE 8

proctype Process(byte me)
{
    byte pc = J1;
    byte e;
end:
    do
    :: d_step { pc != J1 && pc != GONE -> pc = GONE; e = 0; living[me] = 0; lock = (lock == me -> 0 : lock) }
#ifdef ENTRY_FIRST
    :: d_step { pc == J1 && !ALIVE(entry) -> e = entry; pc = J2 }
    :: d_step { pc == J2 -> if :: entry == e -> entry++; born(me, e); pc = J3 :: else -> pc = J1; e = 0 fi }
    :: d_step { pc == J3 && lock == 0 -> lock = me; pc = LIVE }
#else
    :: d_step { pc == J1 && lock == 0 -> lock = me; pc = J2 }
#ifdef JOIN_OVER
    :: d_step { pc == J2 -> e = entry & 254; entry = e + 1; born(me, e); pc = LIVE }
#else
    :: d_step { pc == J2 -> e = entry; pc = (ALIVE(e) -> JA : J3) }
#endif
    :: d_step { pc == JA -> assert(!LIVES(INC(e))); pc = JC }
    :: d_step { pc == JC ->
           assert(!LIVES(INC(e)));
           if :: entry == e -> entry++; ended[INC(e)] = true :: else fi;
           e = 0; pc = J2 }
    :: d_step { pc == J3 -> if :: entry == e -> entry++; born(me, e); pc = LIVE :: else -> e = 0; pc = J2 fi }
#endif
#ifdef UNLOCK_FIRST
    :: d_step { pc == LIVE -> assert(entry == e + 1); lock = 0; pc = E1 }
#else
    :: d_step { pc == LIVE -> assert(entry == e + 1); pc = E1 }
#endif
    :: d_step { pc == E1 -> assert(entry == e + 1); entry++; living[me] = 0; ended[INC(e)] = true; pc = E2 }
    :: d_step { pc == E2 -> lock = (lock == me -> 0 : lock); e = 0; pc = GONE }
    od
}

#define R1 0
#define R2 1
#define R3 2
#define R4 3

proctype Reaper(bool mortal)
{
    byte pc = R1;
    byte e;
end:
    do
    :: d_step { mortal && pc != R1 && pc != GONE -> pc = GONE; e = 0 }
#ifdef LOCK_FIRST
    :: d_step { pc == R1 && lock == 0 && ALIVE(entry) -> pc = R2 }
    :: d_step { pc == R2 -> e = entry; pc = (ALIVE(e) -> R3 : R1); e = (pc == R3 -> e : 0) }
#else
    :: d_step { pc == R1 && ALIVE(entry) -> e = entry; pc = R2 }
    :: d_step { pc == R2 && lock == 0 -> pc = R3 }
    :: d_step { pc == R2 && lock != 0 && entry != e -> pc = R1; e = 0 }    /* held: nobody is dead; looks again later */
#endif
    :: d_step { pc == R3 -> assert(!LIVES(INC(e))); pc = R4 }
    :: d_step { pc == R4 ->
           if
#ifdef C_STORE
           :: true -> assert(!LIVES(INC(e))); entry = e + 1
#else
           :: entry == e -> assert(!LIVES(INC(e))); entry++; ended[INC(e)] = true
           :: else
#endif
           fi; e = 0; pc = R1 }
    od
}

proctype Judge()
{
end:
    d_step { timeout -> assert(!ALIVE(entry) && lock == 0) }
}

init {
    atomic {
        byte n = 1;
        do :: n <= NP -> run Process(n); n++ :: else -> break od;
        n = 0;
        do :: n < NR -> run Reaper(n > 0); n++ :: else -> break od;
        run Judge(); n = 0
    }
}
