/*
 * members.pml - who is attached to a port, and the end of its stream (design sections 4 and 5).
 *
 * Shared:  entry[s]    one process slot each: {ALIVE or FREE, incarnation}
 *          member[s]   a port's member word of slot s for its producers' end: {incarnation, handle count, closed}
 *          changes     a counter in the port: 0 until its first producer; goes up after each attach and last detach
 *          ring        the number of unclaimed messages (queue.pml is about how it comes to be one number)
 * A producer of slot s is attached while member[s].count > 0 and entry[s] is {ALIVE, member[s].incarnation}.  Nobody
 * ever erases a dead one's word, no word returns to zero, and reapers do not touch member words at all.
 *
 * THE ORDER OF STEPS (the C++ is written from this list; each number is one atomic access, all seq_cst)
 *
 *   attach    a1  w = load(member[me])
 *             a2  CAS member[me]: w -> {my incarnation, (w.incarnation is mine ? w.count : 0) + 1, open}; failed: a1
 *             a3  changes + 1                      the attach takes effect here; only then push
 *   detach    d1  (the handle's last push is over)  w = load(member[me])
 *             d2  w.count is 1, so this may be the last: for each other slot x:  v = load(member[x]);  v.count > 0:
 *                 e = load(entry[x]);  e is not {ALIVE, v.incarnation}: CAS member[x]: v -> {v.incarnation, 0, closed},
 *                 one try             (that death is no longer the last end of the stream)
 *             d3  CAS member[me]: w -> {w.incarnation, w.count - 1, closed if that is 0}; failed: d1
 *                                                  the detach takes effect here
 *             d4  the count came to 0: changes + 1
 *             d5  the count came to 0: notify the consumers' event count (event_count.pml, n2 to n4)
 *   reap (C)  r1  CAS entry[s]: {ALIVE, i} -> {FREE, i + 1}
 *             r2  THEN notify the event counts of all ports and pools, also when r1 failed (who won may be dead)
 *   end?      e1  c = load(changes); 0: not now (the first producer is still to come)
 *             e2  for each slot: w = load(member[s]); w.count > 0: e = load(entry[s]);
 *                 e is {ALIVE, w.incarnation}: not now;  otherwise remember that one died
 *             e3  the ring, looked at after e2: a message: not the end, take it
 *             e4  load(changes) is still c: END (died, if e2 saw a dead one; else closed).  Changed: not now, no retry
 *   wait      w1  pop, then end?      both negative:
 *             w2  set the waiter bit  (event_count.pml, w2)
 *             w3  pop, then end?, in full, again;  w4 sleep;  w5 from w1
 *
 * What the steps are for.  Without e4 a stream that is handed over (one producer attaches, then another closes)
 * ends in the middle: the scan passed the first before it came and met the second after it went.  a3 before a2 gives
 * the same.  e3 before e2 misses what was pushed between the two.  Waking before r1 wakes a consumer that sees the dead
 * one still attached and goes to sleep again.
 *
 * Killed in between: after a2: a word that counts until the reaper's r1, and no message; after d3: detached, the wake-up
 * is late by at most one re-check interval; between d2 and d3: it died, and d2 made an earlier death forgotten in vain.
 *
 * Properties: an announced END is true at e4 (a producer had come, nobody's finished attach is in force, no message is
 * left); its reason is that of the last end; a live producer's word is never erased and its count is right; nobody
 * sleeps at the end of a stream or beside a message (once all who can move have moved), except as in event_count.pml.
 * The consumers' end is the same with the roles exchanged and without e3.
 *
 * Size:      T threads in slot 0 (one in slot 1), ROUNDS of attach and detach per thread and life, MSG pushes at most
 *            in each, NC consumers, NR reapers (all but the first may be killed), KILLS, BIRTHS
 * Mistakes:  RING_FIRST        e3 before e2
 *            NO_SECOND_LOOK    e4 left out
 *            COUNT_FIRST       a3 before a2
 *            NO_CHANGES        e1 asks for a word that is not zero instead, and e4 is left out
 *            ATTACH_STORE      a2 is a store: two threads lose a handle
 *            REAPER_ERASES     a reaper stores {i, 0, closed} into the dead one's member word before r1
 *            COUNT_ONLY        e2 does not look at the entry: who died stays attached for ever
 *            SLOT_ONLY         e2 does not compare incarnations: a newcomer is taken for the one before
 *            WAKE_FIRST        r2 before r1
 *            NO_WAKE           d5 left out
 *            NO_SWEEP          d2 left out: the reason is wrong
 *            NO_LAST_CHANGE    d4 left out: the reason is wrong
 *            STICKY_FIRST      no e1: a port without producers is at its end
 */
#ifndef T
#define T 2
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef MSG
#define MSG 1
#endif
#ifndef NC
#define NC 1
#endif
#ifndef NR
#define NR 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef BIRTHS
#define BIRTHS 1
#endif

#define S 2                              /* process slots */
#define THREADS (T + 1)
#define SLOT(t) ((t) / T)                /* threads 0..T-1 are in slot 0, thread T in slot 1 */

#define ALIVE(e)       ((e) & 1)         /* entry = 2 * incarnation + alive */
#define INC(e)         ((e) >> 1)
#define MEMBER(i,c,cl) ((i) * 8 + (c) * 2 + (cl))
#define M_INC(w)       ((w) >> 3)
#define M_COUNT(w)     (((w) >> 1) & 3)
#define COUNTS(w,e)    (M_COUNT(w) > 0 && (e) == 2 * M_INC(w) + 1)

/* ---- shared memory ---- */
byte entry[S];
byte member[S];
byte changes;
byte ring;

/* ---- the processes: a thread's whole state, so that a kill takes all threads of a slot at once ---- */
bool dead[S];                            /* the kernel has released the slot's lock */
byte inc[S];                             /* my incarnation */
byte pc[THREADS];
byte w[THREADS];
byte v[THREADS];                         /* another slot's word, in d2 */
byte round[THREADS];
byte sent[THREADS];
bool owes[THREADS];                      /* published, wake-up still to come */

/* ---- consumers: asleep only while armed; a wake-up disarms (the event count, seen from outside) ---- */
bool armed[NC];
bool asleep[NC];

/* ---- bookkeeping of the specification ---- */
byte kills = KILLS;
byte births = BIRTHS;
byte in_force[S];                        /* attaches of slot s that took effect and have not ended */
bool had_producer;
byte last_end;                           /* of those that are over: a close (at d3), a death (at r1), or at once */
#define CLOSED 0
#define DIED 1
#define EITHER 2
bool met_death[THREADS];                 /* a death became known while this thread was in its d1 to d3 */
bool rechecks[NC];
hidden byte i;

inline notify() {
    i = 0; do :: i < NC -> armed[i] = false; asleep[i] = false; rechecks[i] = false; i++ :: else -> break od; i = 0
}
inline allow_rechecks() {
    i = 0; do :: i < NC -> rechecks[i] = rechecks[i] || armed[i]; i++ :: else -> break od; i = 0
}

#define IDLE 0
#define A1 1
#define A2 2
#define A3 3
#define PUSH 4
#define PUSHED 5
#define D1 6
#define D2 7
#define D2B 8
#define D2C 9
#define D3 10
#define D4 11
#define D5 12

#ifdef COUNT_FIRST
#define ATTACH_START A3
#define AFTER_A2 PUSH
#define AFTER_A3 A1
#else
#define ATTACH_START A1
#define AFTER_A2 A3
#define AFTER_A3 PUSH
#endif

/* one thread of a producer process: attach, push, detach */
proctype Thread(byte t)
{
#define me SLOT(t)
#define other (1 - SLOT(t))
#define AT(p) d_step { pc[t] == p && !dead[me]
end:
    do
    :: AT(IDLE) && round[t] < ROUNDS -> round[t]++; pc[t] = ATTACH_START }
    :: AT(IDLE) && round[t] < ROUNDS -> round[t]++ }                      /* or has nothing to do with this port */

    :: AT(A1) -> w[t] = member[me]; pc[t] = A2 }
    :: AT(A2) ->
           if
#ifndef ATTACH_STORE
           :: member[me] != w[t] -> pc[t] = A1
#endif
           :: else ->
                  if
                  :: M_INC(w[t]) == inc[me] -> member[me] = MEMBER(inc[me], M_COUNT(w[t]) + 1, 0)
                  :: else -> member[me] = MEMBER(inc[me], 1, 0)
                  fi;
#ifdef COUNT_FIRST
                  in_force[me]++;
#endif
                  pc[t] = AFTER_A2
           fi; w[t] = 0 }
    :: AT(A3) -> changes++; had_producer = true;
#ifndef COUNT_FIRST
           in_force[me]++;
#endif
           pc[t] = AFTER_A3 }

    :: AT(PUSH) && sent[t] < MSG -> ring++; sent[t]++; owes[t] = true; pc[t] = PUSHED }
    :: AT(PUSHED) -> notify(); owes[t] = false; pc[t] = PUSH }
    :: AT(PUSH) -> sent[t] = 0; pc[t] = D1;
           assert(M_INC(member[me]) == inc[me] && M_COUNT(member[me]) >= in_force[me]) }

    :: AT(D1) -> w[t] = member[me];
#ifdef NO_SWEEP
           pc[t] = D3 }
#else
           pc[t] = (M_COUNT(w[t]) == 1 -> D2 : D3) }
#endif
    :: AT(D2)  -> v[t] = member[other]; if :: M_COUNT(v[t]) > 0 -> pc[t] = D2B :: else -> v[t] = 0; pc[t] = D3 fi }
    :: AT(D2B) -> if :: COUNTS(v[t], entry[other]) -> v[t] = 0; pc[t] = D3 :: else -> pc[t] = D2C fi }
    :: AT(D2C) -> if :: member[other] == v[t] -> member[other] = MEMBER(M_INC(v[t]), 0, 1) :: else fi;
           v[t] = 0; pc[t] = D3 }
    :: AT(D3) ->
           if
           :: member[me] != w[t] -> pc[t] = D1; met_death[t] = false
           :: else ->
                  assert(M_INC(w[t]) == inc[me] && M_COUNT(w[t]) > 0);
                  in_force[me]--;
                  if
                  :: M_COUNT(w[t]) == 1 -> member[me] = MEMBER(inc[me], 0, 1); owes[t] = true;
                         last_end = (met_death[t] -> EITHER : CLOSED); met_death[t] = false;
#ifdef NO_LAST_CHANGE
                         pc[t] = D5
#else
                         pc[t] = D4
#endif
                  :: else -> member[me] = MEMBER(inc[me], M_COUNT(w[t]) - 1, 0); pc[t] = IDLE
                  fi
           fi; w[t] = 0 }
    :: AT(D4) -> changes++; pc[t] = D5 }
#ifdef NO_WAKE
    :: AT(D5) -> owes[t] = false; pc[t] = IDLE }
#else
    :: AT(D5) -> notify(); owes[t] = false; pc[t] = IDLE }
#endif
    od
#undef me
#undef other
}

/* what the kernel and the users do: kill a process, let one leave whose threads have finished, start a new one */
inline forget_threads(s) {
    t = 0;
    do
    :: t < THREADS && SLOT(t) == s ->
           if :: owes[t] -> allow_rechecks() :: else fi;
           if :: pc[t] == D4 && last_end == CLOSED -> last_end = EITHER :: else fi;
           pc[t] = IDLE; w[t] = 0; v[t] = 0; round[t] = ROUNDS; sent[t] = 0; owes[t] = false; met_death[t] = false; t++
    :: t < THREADS && SLOT(t) != s -> t++
    :: else -> break
    od; t = 0
}
#define FINISHED(t) (round[t] == ROUNDS && pc[t] == IDLE)
#if T == 2
#define ALL_FINISHED(s) ((s == 0 && FINISHED(0) && FINISHED(1)) || (s == 1 && FINISHED(2)))
#else
#define ALL_FINISHED(s) ((s == 0 && FINISHED(0)) || (s == 1 && FINISHED(1)))
#endif

proctype World(byte s)
{
    byte t;
end:
    do
    :: d_step { !dead[s] && kills > 0 -> kills--; dead[s] = true; forget_threads(s) }
    :: d_step { !dead[s] && births > 0 && ALL_FINISHED(s) ->
           assert(in_force[s] == 0); entry[s] = 2 * (inc[s] + 1); dead[s] = true }
    :: d_step { dead[s] && births > 0 && !ALIVE(entry[s]) ->
           births--; inc[s] = INC(entry[s]); entry[s]++; dead[s] = false;
           t = 0;
           do :: t < THREADS -> if :: SLOT(t) == s -> round[t] = 0 :: else fi; t++ :: else -> break od; t = 0 }
    od
}

#define R0 0
#define RE 1
#define R1 2
#define R2 3
#define RDEAD 4

proctype Reaper(bool mortal)
{
    byte at = R0;
    byte s;
    byte d;                              /* the dead one's incarnation */
    byte t;
    bool won;                            /* r1 was mine, the wake-up still to come */
end:
    do
    :: d_step { mortal && kills > 0 && (at == R1 || at == R2) -> kills--; at = RDEAD; s = 0; d = 0;
           if :: won -> allow_rechecks(); won = false :: else fi }
    /* entry read as {ALIVE, d}, then the death proven; (A) and (B) are queue.pml's */
    :: d_step { at == R0 && dead[0] && ALIVE(entry[0]) -> s = 0; d = INC(entry[0]); at = RE }
    :: d_step { at == R0 && dead[1] && ALIVE(entry[1]) -> s = 1; d = INC(entry[1]); at = RE }
#ifdef REAPER_ERASES
    :: d_step { at == RE -> member[s] = MEMBER(d, 0, 1); at = R1 }
#else
    :: d_step { at == RE -> at = R1 }
#endif
#ifdef WAKE_FIRST
    :: d_step { at == R1 -> notify(); at = R2 }
    :: d_step { at == R2 ->
#else
    :: d_step { at == R1 ->
#endif
           if
           :: entry[s] == 2 * d + 1 ->
                  if
                  :: COUNTS(member[s], entry[s]) ->
                         /* killed between a2 and a3: it had not quite come */
                         if
                         :: in_force[s] > 0 -> last_end = DIED
                         :: in_force[s] == 0 && last_end == CLOSED -> last_end = EITHER
                         :: else
                         fi; t = 0;
                         do
                         :: t < THREADS -> met_death[t] = (pc[t] >= D1 && pc[t] <= D3); t++
                         :: else -> break
                         od; t = 0
                  :: else
                  fi;
                  entry[s] = 2 * d + 2; in_force[s] = 0; won = true
           :: else
           fi;
#ifdef WAKE_FIRST
           at = R0; s = 0; d = 0; won = false }
#else
           at = R2 }
    :: d_step { at == R2 -> notify(); at = R0; s = 0; d = 0; won = false }
#endif
    od
}

#define POP 0
#define E1 1
#define E2 2
#define E2B 3
#define E3 4
#define E4 5
#define W2 6
#define W4 7
#define W5 8
#define ENDED 9

#if defined(COUNT_ONLY)
#define TAKEN_FOR_LIVE(w, e) (M_COUNT(w) > 0)
#elif defined(SLOT_ONLY)
#define TAKEN_FOR_LIVE(w, e) (M_COUNT(w) > 0 && ALIVE(e))
#else
#define TAKEN_FOR_LIVE(w, e) COUNTS(w, e)
#endif
#ifdef RING_FIRST
#define AFTER_E1 E3
#define AFTER_E2 E4
#define AFTER_E3 E2
#else
#define AFTER_E1 E2
#define AFTER_E2 E3
#define AFTER_E3 E4
#endif
#define NOT_NOW (second -> W4 : W2)

#define AT_END (had_producer && !COUNTS(member[0], entry[0]) && !COUNTS(member[1], entry[1]))

proctype Consumer(byte me)
{
    byte at = POP;
    byte c;
    byte s;
    byte x;
    bool second;                         /* the look after the waiter bit was set */
    bool died;
end:
    do
    :: d_step { at == POP ->
           if
           :: ring > 0 -> ring--; second = false; armed[me] = false; rechecks[me] = false
           :: else -> at = E1
           fi }
    :: d_step { at == E1 -> c = changes; at = AFTER_E1;
#if defined(NO_CHANGES)
           if :: member[0] == 0 && member[1] == 0 -> at = NOT_NOW :: else fi
#elif !defined(STICKY_FIRST)
           if :: c == 0 -> at = NOT_NOW :: else fi
#endif
       }
    :: d_step { at == E2 -> x = member[s];
           if
           :: M_COUNT(x) > 0 -> at = E2B
           :: else -> x = 0; s++
           fi;
           if :: s == S -> s = 0; at = AFTER_E2 :: else fi }
    :: d_step { at == E2B ->
           if
           :: TAKEN_FOR_LIVE(x, entry[s]) -> at = NOT_NOW; s = 0; c = 0; died = false
           :: else -> died = true; at = E2; s++;
                  if :: s == S -> s = 0; at = AFTER_E2 :: else fi
           fi; x = 0 }
    :: d_step { at == E3 ->
           if
           :: ring > 0 -> at = POP; c = 0; died = false
           :: else -> at = AFTER_E3
           fi }
    :: d_step { at == E4 ->
           if
#if !defined(NO_SECOND_LOOK) && !defined(NO_CHANGES)
           :: changes != c -> at = NOT_NOW
#endif
           :: else ->
                  assert(had_producer);
                  assert(ring == 0);
                  assert(in_force[0] == 0 && in_force[1] == 0);
                  assert(died || last_end != DIED);
                  assert(!died || last_end != CLOSED || pc[0] == D4 || pc[1] == D4 || pc[THREADS - 1] == D4);
                  at = ENDED; second = false; armed[me] = false; rechecks[me] = false
           fi; c = 0; died = false }
    :: d_step { at == ENDED && (in_force[0] > 0 || in_force[1] > 0 || ring > 0) -> at = POP }

    :: d_step { at == W2 -> armed[me] = true; second = true; at = POP }
    :: d_step { at == W4 -> asleep[me] = armed[me]; at = W5 }
    :: d_step { at == W5 && !asleep[me] -> second = false; armed[me] = false; rechecks[me] = false; at = POP }
    :: d_step { timeout && at == W5 && asleep[me] && rechecks[me] && (ring > 0 || AT_END) -> asleep[me] = false }
    od
}

/* whenever nobody can move: who sleeps has nothing to do, or is waiting for a re-check that it may need */
proctype Judge()
{
end:
    d_step { timeout ->
        i = 0;
        do
        :: i < NC -> assert(!(asleep[i] && (ring > 0 || AT_END) && !rechecks[i])); i++
        :: else -> break
        od; i = 0 }
}

init {
    atomic {
        byte n = 0;
        do :: n < S -> entry[n] = 1; run World(n); n++ :: else -> break od;
        n = 0;
        do :: n < THREADS -> run Thread(n); n++ :: else -> break od;
        n = 0;
        do :: n < NC -> run Consumer(n); n++ :: else -> break od;
        n = 0;
        do :: n < NR -> run Reaper(n > 0); n++ :: else -> break od;
        run Judge(); n = 0
    }
}
