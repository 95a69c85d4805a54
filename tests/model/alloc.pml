/*
 * alloc.pml - allocate, clone and drop on ONE buffer with K reference words (design section 4).
 *
 * NH holders have a reference each (they popped it, say), and clone and drop in any order; NA allocators want the
 * buffer.  Each option is one atomic access, and a process may be killed between any two.
 *
 *   allocate  l1  CAS ref[0] FREE -> HELD(me)
 *             l2  read the other words: all FREE, else l4
 *             l3  read them again: each unchanged, generation included, else l4; the buffer is mine
 *             l4  drop ref[0], as below
 *   clone     c1  CAS some ref[k] FREE -> HELD(me)
 *   drop      f1  store ref[k] FREE                                                      seq_cst
 *             f2  read all words; all FREE: tell (offer the hint, notify who waits)      seq_cst
 *
 * What must hold: who passes l3 is alone with the buffer; and after the last word became FREE somebody tells.
 *
 * Size:      K words, NH holders with OPS clones and drops each, NA allocators with TRIES attempts each, KILLS (a
 *            reaper frees the words of the dead, and tells)
 * Mistakes:  SINGLE_SCAN     l3 left out: who clones to a lower word and drops the higher one hides (from K = 3 on)
 *            STATE_ONLY      l3 asks for FREE only, not for the same generation (from K = 3 on)
 *            SILENT_RETURN   l4 without f2
 *            RELAXED_DROP    f1 may wait in a store buffer while f2 reads
 */
#ifndef K
#define K 3
#endif
#ifndef NH
#define NH 1
#endif
#ifndef OPS
#define OPS 5
#endif
#ifndef NA
#define NA 2
#endif
#ifndef TRIES
#define TRIES 2
#endif
#ifndef KILLS
#define KILLS 0
#endif

#define NPROC (NH + NA)                  /* owners 1 to NH hold, the next NA allocate; 0 is FREE */
#define OWNER(w) ((w) & 7)
#define ONWARD(w, owner) ((w) / 8 * 8 + 8 + (owner))

short ref[K];
byte kills = KILLS;
bool dead[NPROC + 1];
bool told;                               /* since the last word became FREE */
byte alone_with_it;                      /* the allocator that has the buffer */
hidden byte i;
hidden byte all_free;

inline look_if_free() {
    i = 0; all_free = true;
    do :: i < K -> all_free = all_free && OWNER(ref[i]) == 0; i++ :: else -> break od; i = 0
}
inline free_word(k, me) {
    assert(OWNER(ref[k]) == me);
    ref[k] = ONWARD(ref[k], 0);
    look_if_free();
    told = told && !all_free; all_free = false
}
inline nobody_else(me) {
    i = 0; do :: i < K -> assert(OWNER(ref[i]) == 0 || OWNER(ref[i]) == me); i++ :: else -> break od; i = 0
}

#define NONE 255
#define DEAD 200

/* f1 and f2, as options of a do-loop: `going` is the word to be dropped, `n` counts the words read */
#ifdef RELAXED_DROP
#define DROP(next) \
    :: d_step { pc == 50 && buffered == NONE -> buffered = going; going = NONE; n = 0; pc = 51 } \
    :: d_step { buffered != NONE -> free_word(buffered, me); buffered = NONE } \
    :: d_step { pc == 51 -> \
           if \
           :: n != buffered && OWNER(ref[n]) != 0 -> n = 0; pc = next \
           :: else -> n++; if :: n == K -> n = 0; told = true; pc = next :: else fi \
           fi }
#else
#define DROP(next) \
    :: d_step { pc == 50 -> free_word(going, me); going = NONE; n = 0; pc = 51 } \
    :: d_step { pc == 51 -> \
           if \
           :: OWNER(ref[n]) != 0 -> n = 0; pc = next \
           :: else -> n++; if :: n == K -> n = 0; told = true; pc = next :: else fi \
           fi }
#endif
/* A store in flight reaches memory, also when its maker is killed. */
#define DIE \
    :: d_step { pc != DEAD && kills > 0 -> \
           kills--; dead[me] = true; pc = DEAD; n = 0; going = NONE; \
           if :: buffered != NONE -> free_word(buffered, me); buffered = NONE :: else fi; \
           if :: alone_with_it == me -> alone_with_it = 0 :: else fi }

proctype Holder(byte me)
{
    byte pc;
    byte ops;
    byte mine = 1 << (K - me);           /* the words it holds, as bits */
    byte going = NONE;
    byte buffered = NONE;
    byte n;
end:
    do
    DIE
#define CLONE(k) :: d_step { pc == 0 && ops < OPS && mine != 0 && OWNER(ref[k]) == 0 -> \
           ref[k] = ONWARD(ref[k], me); mine = mine | (1 << (k)); ops++ }
#define LET_GO(k) :: d_step { pc == 0 && (mine & (1 << (k))) -> \
           mine = mine & (255 - (1 << (k))); ops = (ops < OPS -> ops + 1 : ops); going = k; pc = 50 }
    CLONE(0) LET_GO(0)
    CLONE(1) LET_GO(1)
#if K > 2
    CLONE(2) LET_GO(2)
#endif
#if K > 3
    CLONE(3) LET_GO(3)
#endif
    DROP(0)
    od
}

proctype Allocator(byte me)
{
    byte pc;
    byte tries;
    byte going = NONE;
    byte buffered = NONE;
    byte n;
    short seen[K];
#define forget() n = 0; do :: n < K -> seen[n] = 0; n++ :: else -> break od; n = 0
end:
    do
    DIE
    :: d_step { pc == 0 && tries < TRIES && OWNER(ref[0]) == 0 -> ref[0] = ONWARD(ref[0], me); tries++; n = 1; pc = 2 }
    :: d_step { pc == 0 && tries < TRIES && OWNER(ref[0]) != 0 -> tries++ }
    :: d_step { pc == 2 ->
           seen[n] = ref[n];
           if
           :: OWNER(seen[n]) != 0 -> pc = 4
           :: else -> n++;
#ifdef SINGLE_SCAN
              if :: n == K -> pc = 5 :: else fi
#else
              if :: n == K -> n = 1; pc = 3 :: else fi
#endif
           fi }
    :: d_step { pc == 3 ->
           if
#ifdef STATE_ONLY
           :: OWNER(ref[n]) != 0 -> pc = 4
#else
           :: ref[n] != seen[n] -> pc = 4
#endif
           :: else -> n++; if :: n == K -> pc = 5 :: else fi
           fi }
#ifdef SILENT_RETURN
    :: d_step { pc == 4 -> forget(); free_word(0, me); pc = 0 }
#else
    :: d_step { pc == 4 -> forget(); going = 0; pc = 50 }
#endif
    :: d_step { pc == 5 -> forget(); assert(alone_with_it == 0); nobody_else(me); alone_with_it = me; pc = 6 }
    :: d_step { pc == 6 -> assert(alone_with_it == me); nobody_else(me); alone_with_it = 0; going = 0; pc = 50 }
    DROP(0)
    od
}

proctype Reaper()
{
    byte pc;
    byte d;
    byte k;
end:
    do
#define FIND(p) :: d_step { pc == 0 && dead[p] -> d = p; pc = 1 }
    FIND(1)
    FIND(2)
#if NPROC > 2
    FIND(3)
#endif
#if NPROC > 3
    FIND(4)
#endif
    :: d_step { pc == 1 ->
           if :: OWNER(ref[k]) == d -> free_word(k, d) :: else fi;
           k++;
           if :: k == K -> k = 0; pc = 2 :: else fi }
    :: d_step { pc == 2 -> told = true; dead[d] = false; d = 0; pc = 0 }
    od
}

proctype Judge()
{
end:
    d_step { timeout -> look_if_free(); assert(all_free && told); all_free = false }
}

init {
    atomic {
        byte n = 1;
        do :: n <= NH -> ref[K - n] = 8 + n; run Holder(n); n++ :: else -> break od;
        do :: n <= NPROC -> run Allocator(n); n++ :: else -> break od;
        if :: KILLS > 0 -> run Reaper() :: else fi;
        run Judge(); n = 0
    }
}
