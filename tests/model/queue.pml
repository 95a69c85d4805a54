/*
 * queue.pml - buffers with reference words, the ring inside a port, and reaping (design section 4).
 *
 * Each option of a process's do-loop is ONE atomic access to shared memory; `pc` is its program counter, and it may be
 * killed between any two.  Waiting is a guard that does not hold, never a spin: any cycle of states is a livelock.
 *
 *   allocate  l1  CAS ref[0] FREE -> HELD(me)
 *             l2  read the other words: all FREE                            else l4
 *             l3  read them again: unchanged, generations included: mine    else l4
 *             l4  store ref[0] FREE, try another buffer
 *   clone     c1  CAS ref[k] FREE -> HELD(me)
 *   drop      f1  store ref[k] FREE
 *   push      p1  look: the cell is empty for this lap (p2, or p3 when the word is QUEUED already), holds last lap's
 *                 item (p4), or is ahead (move on to a proven position, p1)
 *             p2  store ref[k] QUEUED(me)
 *             p3  CAS cell empty -> filled(ref, generation)                 takes effect; failed: p1
 *             p4  help: read the word that the cell names
 *             p5  it is QUEUED with the cell's generation: read the cell again, unchanged: full; else p1
 *             p6  it is not: CAS cell -> empty for this lap; p1
 *             p7  full, and the word is QUEUED already: store ref[k] HELD(me)
 *   pop       o1  read the cell: filled for this lap (o2), empty (report it), ahead (move on, o1)
 *             o2  read the word that it names
 *             o3  read the cell again: unchanged, else o1
 *             o4  the word is QUEUED with the cell's generation: CAS word -> HELD(me)       takes effect
 *             o5  whoever claimed it: CAS cell -> empty of the next lap; only then hand out, or go on at o1
 *   reap      A1  each cell of each port: read it          A2  read the word that it names
 *             A3  read the cell again; changed: A1.  QUEUED with the generation: remember the reference.  Else:
 *             A4  claimed: CAS cell -> empty of the next lap
 *             B1  after the whole of A, each word of the dead incarnation, HELD, or QUEUED and not remembered: read it
 *             B2  read the entry again: still {ALIVE, the dead one's incarnation}, else this reaping is over
 *             B3  CAS the full word -> FREE
 *             C1  CAS entry {ALIVE, i} -> {FREE, i + 1}
 *             C2  notify all who wait, for room and for messages
 *   Death is proven between the reading of the entry and A1; slots.pml is about that.
 *
 *   With WAITS=1 room is waited for, and messages.  event_count.pml, seen from outside: w2 arms, the second look is the
 *   whole push or pop, w4 sleeps unless a notification has disarmed; notifying is one step.
 *   push      p8  notify who waits for messages
 *   pop       o6  it claimed a message, OR it cleared a cell: notify who waits for room
 *
 * What must hold: messages come out in the order of p3, each once, none is lost; full and empty are reported only when
 * true; who allocates is alone with the buffer; a reaper frees nothing that is a message or held by the living; in the
 * end whoever lives has finished and every buffer is free; nobody sleeps beside work, except as in event_count.pml.
 *
 * Size:      N cells; NB buffers of K reference words; GB bits of the generation in a cell
 *            NP producers of MSG messages; NC consumers of POPS pops, which push up to FWD on again; with PORTS=2 into
 *            a second port, where NX collectors take them out
 *            KILLS; BIRTHS (a reaped slot is used again); NR reapers, all but the first may be killed; with NR=0 the
 *            killed are never reaped: they are stopped for ever
 *            INCS     how many incarnations a word can tell apart
 *            STALE=1  any operation may start from any older position
 *            OLDEST=1 a full port makes its producer take the oldest message out
 *            WAITS=1  see above
 *            LOOKS=1  a consumer may at any time look whether there is a message (the end-of-stream test's e3), which
 *                     clears claimed cells, and here notifies nobody
 * Mistakes:  CLAIM_AFTER_CLEAR   o5 before o4
 *            HAND_OUT_FIRST      the message is used, and dropped, before o5
 *            POP_NO_REREAD       o3 left out
 *            WAIT_FOR_CLAIMER    o5 is the claimer's alone
 *            HELP_NO_REREAD      p5 left out
 *            NO_HELP             p4 left out: the cell is taken for full
 *            JUMP_A_LAP          a cell that is ahead moves the position a whole lap on
 *            NO_A, B_BEFORE_A    no A1 to A4, or only after B
 *            A_NO_CLEAR          A4 left out
 *            B_STORE             B3 is a store
 *            NO_ENTRY_REREAD     B2 left out
 *            C_STORE             C1 is a store
 *            NOTIFY_IF_CLEARED   o6 not by who claimed, only by who cleared
 *            NO_RELOOK           no look between w2 and w4
 *            NO_P8               p8 left out
 *   A_NO_REREAD leaves A3 out, and turned out to be none.  With NOINV the invariant "no cell names a word that is free"
 *   is not looked at, only what users see.
 */
#ifndef N
#define N 2
#endif
#ifndef NB
#define NB 2
#endif
#ifndef K
#define K 1
#endif
#ifndef GB
#define GB 0
#endif
#ifndef PORTS
#define PORTS 1
#endif
#ifndef NP
#define NP 1
#endif
#ifndef MSG
#define MSG 2
#endif
#ifndef NC
#define NC 1
#endif
#ifndef NX
#define NX 0
#endif
#ifndef POPS
#define POPS 2
#endif
#ifndef FWD
#define FWD 0
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef BIRTHS
#define BIRTHS 0
#endif
#ifndef NR
#define NR 1
#endif
#ifndef INCS
#define INCS 4
#endif
#ifndef STALE
#define STALE 0
#endif
#ifndef OLDEST
#define OLDEST 0
#endif

#ifndef WAITS
#define WAITS 0
#endif
#ifndef LOOKS
#define LOOKS 0
#endif

#define NREF  (NB * K)
#define NCELL (PORTS * N)
#define NW    (NP + NC + NX)             /* workers, each with its process slot */

/* reference word: {generation, owner = slot + 8 * low bits of the incarnation, state} */
#define FREE   0
#define HELD   1
#define QUEUED 2
#define WORD(state, owner, gen) ((gen) * 256 + (owner) * 4 + (state))
#define STATE(w) ((w) & 3)
#define OWNER(w) (((w) >> 2) & 63)
#define GEN(w)   ((w) >> 8)
#define ONWARD(w, state, owner) WORD(state, owner, GEN(w) + 1)

/* cell: {turn, reference, low bits of its generation} */
#define CELL(turn, r, gen) ((turn) * 64 + (r) * 8 + ((gen) & ((1 << GB) - 1)))
#define TURN(c) ((c) >> 6)
#define REF(c)  (((c) & 63) >> 3)
#define FILLED(c) (TURN(c) & 1)
#define NAMES(c, w) (STATE(w) == QUEUED && (GEN(w) & ((1 << GB) - 1)) == ((c) & 7))
#define EMPTIED(c) CELL(TURN(c) + 1, 0, 0)

/* process table entry: 2 * incarnation + alive */
#define ALIVE(e) ((e) & 1)

/* ---- shared memory ---- */
short ref[NREF];
short cell[NCELL];
byte entry[NW];

/* ---- the kernel ---- */
byte step[NW];                           /* each worker's program counter */
bool dead[NW];                           /* and it has released the slot's lock, or (NR=0) is stopped for ever */
byte kills = KILLS;
byte births = BIRTHS;

/* ---- sleeping: what each worker has armed for; 0: nothing ---- */
#define ROOM(port)    (1 + (port))
#define MESSAGE(port) (1 + PORTS + (port))
byte armed[NW];
bool asleep[NW];

/* ---- bookkeeping of the specification ---- */
bool rechecks[NW];                       /* a notifier was killed before it notified this one: it may need a time-out */
byte head[PORTS];                        /* claims so far */
byte tail[PORTS];                        /* pushes so far */
byte queued;                             /* bit r: reference r is a message */
bool judged;
hidden byte i;

#define IS_MESSAGE(r) ((queued >> (r)) & 1)
#define ADD(r)    queued = queued | (1 << (r))
#define REMOVE(r) queued = queued & (255 - (1 << (r)))

/* reference r stops being QUEUED or HELD by its claimer: no cell may name it any more */
#ifdef NOINV
#define in_no_cell(r) skip
#else
inline in_no_cell(r) {
    i = 0; do :: i < NCELL -> assert(!(FILLED(cell[i]) && REF(cell[i]) == (r))); i++ :: else -> break od; i = 0
}
#endif
/* the buffer of word r is handed out by allocate: nobody else has any of it */
inline alone(r) {
    i = 0;
    do
    :: i < K ->
           assert((r) / K * K + i == (r) || (STATE(ref[(r) / K * K + i]) == FREE && !IS_MESSAGE((r) / K * K + i)));
           i++
    :: else -> break
    od; i = 0;
    assert(!IS_MESSAGE(r))
}

#if WAITS
inline notify(what) {
    i = 0;
    do
    :: i < NW -> if :: armed[i] == (what) -> armed[i] = 0; asleep[i] = false; rechecks[i] = false :: else fi; i++
    :: else -> break
    od; i = 0
}
inline notify_all() {
    i = 0; do :: i < NW -> armed[i] = 0; asleep[i] = false; rechecks[i] = false; i++ :: else -> break od; i = 0
}
inline allow_rechecks(what) {
    i = 0;
    do
    :: i < NW -> rechecks[i] = rechecks[i] || (armed[i] > 0 && (what == 0 || armed[i] == what)); i++
    :: else -> break
    od; i = 0
}
#else
#define notify(what) skip
#define notify_all() skip
#define allow_rechecks(what) skip
#endif
#define SOMETHING_FOR(w) \
    ((armed[w] > 0 && armed[w] <= PORTS && tail[(armed[w] - 1) % PORTS] - head[(armed[w] - 1) % PORTS] < N) || \
     (armed[w] > PORTS && tail[(armed[w] - 1) % PORTS] > head[(armed[w] - 1) % PORTS]))

#define TOP 0
#define L1 1
#define L2 2
#define L3 3
#define L4 4
#define HAVE 5
#define F1 6
#define P1 7
#define P2 8
#define P3 9
#define P4 10
#define P5 11
#define P6 12
#define P7 13
#define FULL 14
#define PUSHED 15
#define O1 16
#define O2 17
#define O3 18
#define O4 19
#define O5 20
#define EMPTY 21
#define O6 22
#define CLEARED 23                       /* CLAIM_AFTER_CLEAR */
#define W5R 24                           /* asleep: for room */
#define W5M 25                           /* for a message */
#define JOIN 26
#define DONE 27
#define DEAD 28

#define NONE 255
#define at(port, pos) cell[(port) * N + (pos) % N]

/* A cell that is d > 0 turns ahead proves that the end is at least ((d - 1) / 2) * N + 1 further. */
#ifdef JUMP_A_LAP
#define FURTHER(d) N
#else
#define FURTHER(d) (((d) - 1) / 2 * N + 1)
#endif

proctype Worker(byte me; bool produces; byte source; byte pushes_to)
{
    byte inc;
    byte tpos;                           /* this handle's position at the tail */
    byte hpos;                           /* and at the head */
    byte count;                          /* operations begun */
    byte forwarded;
    byte r;                              /* the reference in hand */
    byte r2 = NONE;                      /* a second one */
    byte tried;                          /* bit b: buffer b was not free after all */
    byte j;
    short x;                             /* a cell as read */
    short o;                             /* a word as read */
#if K > 1
    short seen[K];
    bool cloned;                         /* the buffer in hand has been cloned */
#endif
    bool is_queued;                      /* the word in hand is QUEUED already */
    bool got;                            /* o4 was mine; or: the port was full when p4 looked */
    bool owes;                           /* o6 has something to tell */
    bool second;                         /* the look after w2 */
#if LOOKS
    bool looks;                          /* it only wants to know whether there is a message */
#else
#define looks false
#endif

#define pc step[me]
#define owner (me + 8 * (inc % INCS))
#define mine(r, state) (ref[r] == WORD(state, owner, GEN(ref[r])))
#define AT(p) d_step { pc == p
#define stop_waiting() second = false; armed[me] = 0; rechecks[me] = false
#define forget_operation() x = 0; o = 0; got = false; is_queued = false; j = 0

end:
    do
    :: d_step { pc < JOIN && kills > 0 ->
           if
           :: pc == PUSHED -> allow_rechecks(MESSAGE(pushes_to))
           :: (pc == O5 || pc == O6) && (got || owes) -> allow_rechecks(ROOM(source))
           :: else
           fi;
           kills--; pc = DEAD; dead[me] = true; armed[me] = 0; asleep[me] = false; rechecks[me] = false;
           owes = false; second = false;
#if LOOKS
           looks = false;
#endif
           tpos = 0; hpos = 0; count = 0; forwarded = 0; r = 0; r2 = NONE; tried = 0; forget_operation();
#if K > 1
           i = 0; do :: i < K -> seen[i] = 0; i++ :: else -> break od; i = 0; cloned = false
#endif
       }
#if BIRTHS > 0
    /* a new process takes the slot: it has the lock, then sets the entry */
    :: AT(DEAD) && births > 0 && !ALIVE(entry[me]) && !judged ->
           births--; inc = entry[me] / 2; dead[me] = false; pc = JOIN }
    :: AT(JOIN) -> assert(entry[me] == 2 * inc); entry[me]++; pc = TOP; count = (produces -> MSG - 1 : POPS - 1) }
#endif

    /* ---- what it does ---- */
    :: AT(TOP) && count < (produces -> MSG : POPS) -> count++; pc = (produces -> L1 : O1);
#if K > 1
           cloned = false
#endif
       }
    :: AT(TOP) && count == (produces -> MSG : POPS) ->
           assert(entry[me] == 2 * inc + 1);             /* nobody reaped a live one */
           pc = DONE; tpos = 0; hpos = 0; count = 0; forwarded = 0 }
#if LOOKS
    :: AT(TOP) && !produces && count < POPS -> count++; looks = true; pc = O1 }
#endif
#if STALE
    :: AT(P1) && tpos > 0 -> tpos-- }
    :: AT(O1) && hpos > 0 -> hpos-- }
#endif

    /* ---- allocate ---- */
#define TAKE(b) :: AT(L1) && STATE(ref[(b) * K]) == FREE && !(tried & (1 << (b))) -> \
           r = (b) * K; ref[r] = ONWARD(ref[r], HELD, owner); j = 1; pc = (K > 1 -> L2 : HAVE); \
           if :: K == 1 -> j = 0; tried = 0; alone(r) :: else fi }
    TAKE(0)
#if NB > 1
    TAKE(1)
#endif
#if NB > 2
    TAKE(2)
#endif
#define BUSY(b) ((b) >= NB || STATE(ref[((b) % NB) * K]) != FREE || (tried & (1 << (b))))
    :: AT(L1) && BUSY(0) && BUSY(1) && BUSY(2) -> tried = 0; pc = TOP; count = MSG }      /* no buffer: gives up */
#if K > 1
    :: AT(L2) ->
           seen[j] = ref[r + j];
           if
           :: STATE(seen[j]) != FREE -> pc = L4
           :: else -> j++; if :: j == K -> j = 1; pc = L3 :: else fi
           fi }
    :: AT(L3) ->
           if
           :: ref[r + j] != seen[j] -> pc = L4
           :: else -> j++; if :: j == K -> pc = HAVE; tried = 0; alone(r) :: else fi
           fi;
           if :: pc == HAVE -> j = 0; do :: j < K -> seen[j] = 0; j++ :: else -> break od; j = 0 :: else fi }
    :: AT(L4) ->
           assert(mine(r, HELD)); ref[r] = ONWARD(ref[r], FREE, 0); tried = tried | (1 << (r / K)); r = 0; pc = L1;
           j = 0; do :: j < K -> seen[j] = 0; j++ :: else -> break od; j = 0 }

    /* ---- clone: a further word of the buffer in hand, which is pushed first; once for each buffer ---- */
#define CLONE(k) :: AT(HAVE) && (produces || FWD > 0) && !cloned && r2 == NONE && r % K != (k) && \
           STATE(ref[r / K * K + (k)]) == FREE -> \
           cloned = true; r2 = r; r = r / K * K + (k); ref[r] = ONWARD(ref[r], HELD, owner); pc = P1 }
    CLONE(0)
    CLONE(1)
#if K > 2
    CLONE(2)
#endif
#endif
    :: AT(HAVE) && (produces || forwarded < FWD) && !(OLDEST && produces && r2 != NONE) ->
           forwarded = forwarded + !produces; pc = P1 }
    :: AT(HAVE) -> pc = F1 }

    /* ---- drop ---- */
    :: AT(F1) ->
           assert(mine(r, HELD)); in_no_cell(r); ref[r] = ONWARD(ref[r], FREE, 0);
           r = (r2 == NONE -> 0 : r2);
           pc = (r2 == NONE -> TOP : (OLDEST && produces -> P1 : HAVE)); r2 = NONE;
#ifdef HAND_OUT_FIRST
           if :: x != 0 -> pc = O5 :: else fi;
#endif
       }

    /* ---- push ---- */
    :: AT(P1) ->
           assert(mine(r, (is_queued -> QUEUED : HELD)));
           x = at(pushes_to, tpos);
           if
           :: TURN(x) == 2 * (tpos / N) -> x = 0; pc = (is_queued -> P3 : P2)
           :: TURN(x) == 2 * (tpos / N) - 1 -> pc = P4
           :: TURN(x) < 2 * (tpos / N) - 1 -> assert(false)
           :: else -> tpos = tpos + FURTHER(TURN(x) - 2 * (tpos / N)); x = 0
           fi }
    :: AT(P2) -> in_no_cell(r); ref[r] = ONWARD(ref[r], QUEUED, owner); is_queued = true; pc = P3 }
    :: AT(P3) ->
           if
           :: at(pushes_to, tpos) == CELL(2 * (tpos / N), 0, 0) ->
                  assert(mine(r, QUEUED) && !IS_MESSAGE(r) && tpos == tail[pushes_to]);
                  at(pushes_to, tpos) = CELL(2 * (tpos / N) + 1, r, GEN(ref[r]));
                  tail[pushes_to]++; ADD(r); tpos++; r = 0; is_queued = false; pc = PUSHED
           :: else -> pc = P1
           fi }
    :: AT(P4) ->
           o = ref[REF(x)]; got = (tail[pushes_to] - head[pushes_to] == N);
#if defined(NO_HELP)
           assert(got); pc = (is_queued -> P7 : FULL); x = 0; got = false; o = 0 }
#elif defined(HELP_NO_REREAD)
           if
           :: NAMES(x, o) -> assert(got); pc = (is_queued -> P7 : FULL); x = 0
           :: else -> pc = P6
           fi; got = false; o = 0 }
#else
           if :: NAMES(x, o) -> pc = P5 :: else -> pc = P6; got = false fi; o = 0 }
#endif
    :: AT(P5) ->
           if
           :: at(pushes_to, tpos) != x -> pc = P1
           :: else -> assert(got); pc = (is_queued -> P7 : FULL)       /* and it was full when p4 looked */
           fi; x = 0; got = false }
    :: AT(P6) -> if :: at(pushes_to, tpos) == x -> at(pushes_to, tpos) = EMPTIED(x) :: else fi; x = 0; pc = P1 }
    :: AT(P7) -> assert(mine(r, QUEUED) && !IS_MESSAGE(r));
           ref[r] = ONWARD(ref[r], HELD, owner); is_queued = false; pc = FULL }
#if WAITS
#ifdef NO_RELOOK
    :: AT(FULL) && !second -> armed[me] = ROOM(pushes_to); second = true }                      /* w2 */
#else
    :: AT(FULL) && !second -> armed[me] = ROOM(pushes_to); second = true; pc = P1 }             /* w2 */
#endif
    :: AT(FULL) && second -> asleep[me] = (armed[me] > 0); pc = W5R }                           /* w4 */
    :: AT(W5R) && !asleep[me] -> stop_waiting(); pc = P1 }
    :: d_step { timeout && asleep[me] && rechecks[me] && SOMETHING_FOR(me) -> asleep[me] = false }
#else
    :: AT(FULL) && tail[pushes_to] - head[pushes_to] < N -> pc = P1 }  /* waits, tries again */
    :: AT(FULL) -> pc = F1; if :: OLDEST && r2 == NONE -> r2 = r; pc = O1 :: else fi }    /* gives up, or makes room */
#endif
    :: AT(PUSHED) ->                                                   /* p8 */
#ifndef NO_P8
           notify(MESSAGE(pushes_to));
#endif
           stop_waiting();
           r = (r2 == NONE -> 0 : r2); pc = (r2 == NONE -> TOP : HAVE); r2 = NONE }

    /* ---- pop ---- */
    :: AT(O1) ->
           x = at(source, hpos);
           if
           :: TURN(x) == 2 * (hpos / N) + 1 -> pc = O2
           :: TURN(x) == 2 * (hpos / N) -> assert(head[source] == tail[source]); x = 0; pc = (owes -> O6 : EMPTY)
           :: TURN(x) < 2 * (hpos / N) -> assert(false)
           :: else -> hpos = hpos + FURTHER(TURN(x) - 2 * (hpos / N) - 1); x = 0
           fi }
    :: AT(O2) -> o = ref[REF(x)];
#ifdef POP_NO_REREAD
           pc = (NAMES(x, o) -> O4 : O5); o = (pc == O4 -> o : 0) }
#else
           pc = O3 }
#endif
    :: AT(O3) ->
           if
           :: at(source, hpos) != x -> x = 0; o = 0; pc = O1
#if LOOKS
           :: at(source, hpos) == x && NAMES(x, o) && looks -> looks = false; x = 0; o = 0; pc = TOP
#endif
           :: at(source, hpos) == x && NAMES(x, o) && !looks ->
#ifdef CLAIM_AFTER_CLEAR
                  pc = CLEARED; if :: at(source, hpos) == x -> at(source, hpos) = EMPTIED(x); got = true :: else fi
#else
                  pc = O4
#endif
           :: else -> o = 0; pc = O5
           fi }
#ifdef CLAIM_AFTER_CLEAR
    :: AT(CLEARED) ->
           hpos++; pc = O1;
           if
           :: got && ref[REF(x)] == o -> ref[REF(x)] = ONWARD(o, HELD, owner); r = REF(x); pc = HAVE;
                  assert(hpos - 1 == head[source] && IS_MESSAGE(REF(x))); head[source]++; REMOVE(REF(x))
           :: else
           fi; x = 0; o = 0; got = false }
#endif
    :: AT(O4) ->
           if
           :: ref[REF(x)] == o ->
                  assert(hpos == head[source] && IS_MESSAGE(REF(x)));    /* first in, first out, and once */
                  ref[REF(x)] = ONWARD(o, HELD, owner); head[source]++; REMOVE(REF(x)); got = true
           :: else
           fi; o = 0; pc = O5;
#ifdef HAND_OUT_FIRST
           if :: got -> r = REF(x); got = false; pc = F1 :: else fi
#endif
       }
#ifdef WAIT_FOR_CLAIMER
    :: AT(O5) && (got || at(source, hpos) != x) ->
#else
    :: AT(O5) ->
#endif
#if WAITS && !defined(NOTIFY_IF_CLEARED)
           owes = owes || got;
#endif
           if
           :: at(source, hpos) == x -> at(source, hpos) = EMPTIED(x); owes = owes || (WAITS && !looks)
           :: else
           fi;
           hpos++; r = (got -> REF(x) : r); x = 0;
           if
           :: got && owes -> pc = O6
           :: got && !owes -> pc = HAVE; got = false
           :: else -> pc = O1
           fi }
    :: AT(O6) -> notify(ROOM(source)); owes = false; pc = EMPTY;
           if :: got -> got = false; stop_waiting(); pc = HAVE :: else fi }
#if LOOKS
    :: AT(EMPTY) && looks -> looks = false; pc = TOP }
#endif
#if WAITS
#ifdef NO_RELOOK
    :: AT(EMPTY) && !looks && !second -> armed[me] = MESSAGE(source); second = true }           /* w2 */
#else
    :: AT(EMPTY) && !looks && !second -> armed[me] = MESSAGE(source); second = true; pc = O1 }  /* w2 */
#endif
    :: AT(EMPTY) && !looks && second -> asleep[me] = (armed[me] > 0); pc = W5M }                /* w4 */
    :: AT(W5M) && !asleep[me] -> stop_waiting(); pc = O1 }
#else
    :: AT(EMPTY) && !looks && head[source] < tail[source] -> pc = O1 } /* waits, tries again */
    :: AT(EMPTY) && !looks -> if :: produces -> r = r2; r2 = NONE; pc = P1 :: else -> pc = TOP; count = POPS fi }
#endif
    od
#undef AT
#undef pc
#undef owner
}

#define R0 0
#define A1 1
#define A2 2
#define A3 3
#define A4 4
#define B1 5
#define B2 6
#define B3 7
#define C1 8
#define C2 9
#define KILLED 10

#ifdef NO_A
#define R_FIRST B1
#define AFTER_A C1
#define AFTER_B C1
#elif defined(B_BEFORE_A)
#define R_FIRST B1
#define AFTER_A C1
#define AFTER_B A1
#else
#define R_FIRST A1
#define AFTER_A B1
#define AFTER_B C1
#endif

proctype Reaper(bool mortal)
{
    byte pc = R0;
    byte slot;
    byte inc;
    byte n;                              /* cell, then reference */
    byte remembered;                     /* bit r: reference r was in a cell and unclaimed */
    short x;
    short o;

#define owner (slot + 8 * (inc % INCS))
#define AT(p) d_step { pc == p
#define next_cell() x = 0; n++; pc = A1; if :: n == NCELL -> n = 0; pc = AFTER_A :: else fi
#define TO_FREE(r) (OWNER(ref[r]) == owner && \
                    (STATE(ref[r]) == HELD || (STATE(ref[r]) == QUEUED && !((remembered >> (r)) & 1))))
end:
    do
    :: d_step { mortal && pc != R0 && pc != KILLED && kills > 0 -> kills--;
           if :: pc == C2 -> allow_rechecks(0) :: else fi;
           pc = KILLED; slot = 0; inc = 0; n = 0; remembered = 0; x = 0; o = 0 }
#define FIND(s) :: AT(R0) && ALIVE(entry[s]) && dead[s] -> slot = s; inc = entry[s] / 2; pc = R_FIRST }
    FIND(0)
#if NW > 1
    FIND(1)
#endif
#if NW > 2
    FIND(2)
#endif
#if NW > 3
    FIND(3)
#endif
    :: AT(A1) -> x = cell[n]; if :: FILLED(x) -> pc = A2 :: else -> next_cell() fi }
    :: AT(A2) -> o = ref[REF(x)]; pc = A3 }
    :: AT(A3) ->
           if
#ifndef A_NO_REREAD
           :: cell[n] != x -> pc = A1; x = 0
           :: cell[n] == x && NAMES(x, o) -> remembered = remembered | (1 << REF(x)); next_cell()
           :: else -> pc = A4
#else
           :: NAMES(x, o) -> remembered = remembered | (1 << REF(x)); next_cell()
           :: else -> pc = A4
#endif
           fi; o = 0 }
#ifdef A_NO_CLEAR
    :: AT(A4) -> next_cell() }
#else
    :: AT(A4) -> if :: cell[n] == x -> cell[n] = EMPTIED(x) :: else fi; next_cell() }
#endif
    /* The words that are not the dead one's are passed over in one step: they never become its again. */
    :: AT(B1) ->
           do :: n < NREF && !TO_FREE(n) -> n++ :: else -> break od;
           if
           :: n == NREF -> n = 0; remembered = 0; pc = AFTER_B
           :: else -> o = ref[n];
#ifdef NO_ENTRY_REREAD
              pc = B3
#else
              pc = B2
#endif
           fi }
    :: AT(B2) ->
           if
           :: entry[slot] == 2 * inc + 1 -> pc = B3
           :: else -> pc = R0; o = 0; slot = 0; inc = 0; n = 0; remembered = 0
           fi }
    :: AT(B3) ->
           if
#ifndef B_STORE
           :: ref[n] != o
#endif
           :: else ->
                  assert(dead[slot] && entry[slot] / 2 == inc || STATE(ref[n]) == FREE || OWNER(ref[n]) != owner);
                  assert(!IS_MESSAGE(n));
                  in_no_cell(n);
                  ref[n] = ONWARD(o, FREE, 0)
           fi; o = 0; n++; pc = B1 }
    :: AT(C1) ->
           if
#ifndef C_STORE
           :: entry[slot] != 2 * inc + 1
#endif
           :: else -> entry[slot] = 2 * inc + 2
           fi; pc = (WAITS -> C2 : R0); slot = 0; inc = 0 }
    :: AT(C2) -> notify_all(); pc = R0 }
    od
#undef AT
#undef owner
}

/*
 * When nobody can move any more: whoever lives has finished.  Take out what is left, in order: nothing may be lost, and
 * every buffer must be free, but for what is held by those who are stopped for ever, or asleep in a full port.
 */
#define STOPPED(w) (NR == 0 && dead[OWNER(w) & 7])
#define NEEDS_RECHECK(w) ((w) < NW && asleep[(w) % NW] && rechecks[(w) % NW] && SOMETHING_FOR((w) % NW))
proctype Judge()
{
    byte port;
    byte pos;
    byte r;
end:
    d_step { timeout && !NEEDS_RECHECK(0) && !NEEDS_RECHECK(1) && !NEEDS_RECHECK(2) && !NEEDS_RECHECK(3) ->
        r = 0; do :: r < NW -> assert(!(asleep[r] && SOMETHING_FOR(r))); r++ :: else -> break od;
        judged = true;
        do
        :: port < PORTS ->
               pos = 0;
               do
               :: TURN(at(port, pos)) > 2 * (pos / N) + 1 -> pos++
               :: TURN(at(port, pos)) == 2 * (pos / N) + 1 ->
                      r = REF(at(port, pos));
                      if
                      :: NAMES(at(port, pos), ref[r]) ->
                             assert(pos == head[port] && IS_MESSAGE(r));
                             head[port]++; REMOVE(r); ref[r] = ONWARD(ref[r], FREE, 0)
                      :: else -> assert(STOPPED(ref[r]) && pos < head[port])      /* between its claim and its clear */
                      fi;
                      at(port, pos) = EMPTIED(at(port, pos))
               :: else -> break
               od;
               assert(head[port] == tail[port]);
               port++
        :: else -> break
        od;
        r = 0;
        do
        :: r < NW -> assert(step[r] == DONE || step[r] == DEAD || asleep[r]);
               assert(NR == 0 || !(dead[r] && ALIVE(entry[r]))); r++
        :: else -> break
        od;
        r = 0;
        do
        :: r < NREF -> assert(STATE(ref[r]) == FREE || STOPPED(ref[r]) || asleep[OWNER(ref[r]) & 7]); r++
        :: else -> break
        od;
        assert(queued == 0) }
}

init {
    atomic {
        byte n = 0;
        do :: n < NW -> entry[n] = 1; n++ :: else -> break od;
        n = 0;
        do :: n < NP -> run Worker(n, true, 0, 0); n++ :: else -> break od;
        do :: n < NP + NC -> run Worker(n, false, 0, PORTS - 1); n++ :: else -> break od;
        do :: n < NW -> run Worker(n, false, PORTS - 1, 0); n++ :: else -> break od;
        n = 0;
        do :: n < NR -> run Reaper(n > 0); n++ :: else -> break od;
        run Judge(); n = 0
    }
}
