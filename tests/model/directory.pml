/*
 * directory.pml - how pools and ports come to be found by name: directory entries and segments (design section 3).
 *
 * Creators all make the same name, each in a segment of its own. A segment is of use when it is complete; whoever opens
 * one finds it so, or the model fails.
 *
 *   create    c1  read the entry at `place`, from 0 on; empty: c3
 *             c2  filled: open the segment that it names; it has my name: done, remove my own.  Another: c1, next place
 *             c3  where I have made none yet: create my segment, which nobody looks for, ...
 *             c4  ... and complete it
 *             c5  CAS the entry empty -> mine; failed: c1 at the same place
 *             c6  done without having published: remove my own segment
 *   reap      r1  the creator's entry in the process table is ALIVE, and it is proven dead
 *             r2  its segment exists
 *             r3  THEN look whether the directory lists it; not: remove it
 *             r4  end the entry: afterwards nobody looks for what the dead has left
 *
 * What must hold: an entry names a complete segment, for ever; a name is in the directory once; what a dead creator
 * leaves is listed, or gone when its entry has ended.
 *
 * Size:      NC creators, each killed at any step, and NR reapers, all but the first mortal; creator n makes name
 *            n mod NAMES
 * Mistakes:  PUBLISH_FIRST  c5 before c4: half-made segments are found
 *            SKIP_WINNER    a failed c5 goes on with the next place: a name is there twice
 *            LIST_FIRST     r3's look before r1's proof: removes what is published in between
 *            END_FIRST      r4 before r2: a reaper that is killed in between leaves the segment for good
 *            STORE_ENTRY    c5 is a store: takes another's entry away
 */
#ifndef NC
#define NC 3
#endif
#ifndef NR
#define NR 2
#endif
#ifndef NAMES
#define NAMES 1
#endif

#define NONE 0
#define PARTIAL 1
#define COMPLETE 2

byte directory[NC];                      /* 0, or 1 + the creator whose segment it names */
byte segment[NC];                        /* NONE, PARTIAL, COMPLETE */
bool alive[NC];                          /* what the process table says */
bool dead[NC];                           /* the proof */

#define NAME(c) ((c) % NAMES)

#define C1 0
#define C2 1
#define C3 2
#define C4 3
#define C5 4
#define C6 5
#define GONE 6

proctype Creator(byte me)
{
    byte pc = C1;
    byte place;
    byte e;
    bool made;
end:
    do
    :: d_step { pc != GONE -> dead[me] = true; pc = GONE; place = 0; e = 0; made = false }   /* killed */
    :: d_step { pc == C1 && place < NC -> e = directory[place];
           if :: e == 0 -> pc = (made -> C5 : C3) :: else -> pc = C2 fi }
    :: d_step { pc == C2 ->
           assert(segment[e - 1] == COMPLETE);
           if :: NAME(e - 1) == NAME(me) -> pc = C6 :: else -> place++; pc = C1 fi;
           e = 0 }
    :: d_step { pc == C3 -> assert(segment[me] == NONE); segment[me] = PARTIAL; made = true;
#ifdef PUBLISH_FIRST
           pc = C5 }
    :: d_step { pc == C4 -> segment[me] = COMPLETE; pc = GONE; place = 0; made = false }
#else
           pc = C4 }
    :: d_step { pc == C4 -> segment[me] = COMPLETE; pc = C5 }
#endif
    :: d_step { pc == C5 ->
#ifdef STORE_ENTRY
           directory[place] = me + 1;
#endif
           if
#ifndef STORE_ENTRY
           :: directory[place] == 0 -> directory[place] = me + 1;
#else
           :: true ->
#endif
#ifdef PUBLISH_FIRST
              pc = C4
#else
              pc = GONE; place = 0; made = false
#endif
           :: else ->
#ifdef SKIP_WINNER
              place++;
#endif
              pc = C1
           fi }
    :: d_step { pc == C6 -> segment[me] = NONE; pc = GONE; place = 0; made = false }
    od
}

inline list(c, is_listed)
{
    i = 0; is_listed = false;
    do
    :: i < NC -> is_listed = (directory[i] == c + 1 -> true : is_listed); i++
    :: else -> break
    od;
    i = 0
}

#define R1 0
#define R2 1
#define R3 2
#define R4 3
#define RL 4

/* Reaps creator c, as often as it likes. */
proctype Reaper(bool mortal)
{
    byte pc = R1;
    byte c;
    byte i;
    bool listed;
end:
    do
    :: d_step { mortal && pc != R1 && pc != GONE -> pc = GONE; c = 0; listed = false }                /* killed */
#ifdef LIST_FIRST
    :: d_step { pc == R1 && alive[0] -> c = 0; list(c, listed); pc = RL }
    :: d_step { pc == R1 && alive[1 % NC] -> c = 1 % NC; list(c, listed); pc = RL }
    :: d_step { pc == RL && alive[c] && dead[c] -> pc = R2 }
#else
    :: d_step { pc == R1 && alive[0] && dead[0] -> c = 0; pc = R2 }
    :: d_step { pc == R1 && NC > 1 && alive[1 % NC] && dead[1 % NC] -> c = 1 % NC; pc = R2 }
    :: d_step { pc == R1 && NC > 2 && alive[2 % NC] && dead[2 % NC] -> c = 2 % NC; pc = R2 }
#endif
#ifdef END_FIRST
    :: d_step { pc == R2 -> alive[c] = false; pc = R3 }
    :: d_step { pc == R3 && segment[c] == NONE -> pc = R1; c = 0 }
    :: d_step { pc == R3 && segment[c] != NONE -> list(c, listed); pc = R4 }
    :: d_step { pc == R4 -> segment[c] = (listed -> segment[c] : NONE); pc = R1; c = 0; listed = false }
#else
    :: d_step { pc == R2 -> pc = (segment[c] == NONE -> R4 : R3) }
#ifndef LIST_FIRST
    :: d_step { pc == R3 -> list(c, listed); pc = RL }
    :: d_step { pc == RL -> segment[c] = (listed -> segment[c] : NONE); listed = false; pc = R4 }
#else
    :: d_step { pc == R3 -> segment[c] = (listed -> segment[c] : NONE); listed = false; pc = R4 }
#endif
    :: d_step { pc == R4 -> alive[c] = false; pc = R1; c = 0 }
#endif
    od
}

/* When nothing more can happen: everybody's segment is listed and complete, or gone; each name at most once. */
proctype Judge()
{
    byte n;
    byte m;
    byte i;
    bool listed;
end:
    d_step { timeout ->
        n = 0;
        do
        :: n < NC ->
            list(n, listed);
            assert(!listed || segment[n] == COMPLETE);
            assert(listed || segment[n] == NONE);
            m = n + 1;
            do
            :: m < NC ->
                assert(directory[n] == 0 || directory[m] == 0 || NAME(directory[n] - 1) != NAME(directory[m] - 1));
                m++
            :: else -> break
            od;
            n++
        :: else -> break
        od
    }
}

init {
    atomic {
        byte n = 0;
        do :: n < NC -> alive[n] = true; run Creator(n); n++ :: else -> break od;
        n = 0;
        do :: n < NR -> run Reaper(n > 0); n++ :: else -> break od;
        run Judge(); n = 0
    }
}
