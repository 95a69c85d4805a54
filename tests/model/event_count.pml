/*
 * event_count.pml - sleeping and waking on one word (design section 6).
 *
 * The word is {epoch, waiter bit}.  `items` stands for whatever is waited for: messages in a port, room in
 * a port, free buffers in a pool, the end of a stream.
 *
 *   wait      w1  look; if there is something, take it
 *             w2  key = fetch_or(word, bit) | bit                              seq_cst
 *             w3  look again; if there is something, take it (the bit stays)   seq_cst
 *             w4  FUTEX_WAIT(word, key): the kernel compares and goes to sleep in one step
 *             w5  woken, refused or timed out: w1 again
 *
 *   notify    n1  publish                                                      seq_cst
 *             n2  seen = load(word); bit clear: done, without a system call    seq_cst
 *             n3  compare_exchange(word, seen -> next epoch, bit clear), ONCE; failed: done
 *             n4  FUTEX_WAKE, all sleepers of the word
 *
 * Why n3 needs no retry: only another notifier can have changed a word whose bit is set, and it did so after
 * n2, so after n1.  Sleepers of the old epoch are that notifier's to wake; who sets the bit in the new epoch
 * looks afterwards and finds what n1 published.
 *
 * Any process may be killed, and any waiter stopped for ever (it stays in the kernel's queue), between any
 * two steps.  What must hold:
 *   - nobody sleeps while there is something to do, once all who can move have moved; except that after a
 *     notifier was killed between n1 and n4, each waiter that was then between w2 and w5 may need ONE time-out
 *     of the re-check interval;
 *   - each wake-up is paid for by one waiter's setting of the bit: a killed waiter's bit costs at most one
 *     needless system call.
 *
 * Size:      NW waiters, NN notifiers, MSG items from each, KILLS deaths and stops, EPOCHS before the epoch wraps
 * Mistakes:  NO_RELOOK          w3 left out
 *            LATE_KEY           key read after w3 instead of taken in w2
 *            SILENT_CLEAR       n3 without n4
 *            WAKE_ONE           n4 wakes one sleeper
 *            LOAD_FIRST         n2 before n1
 *            SAME_EPOCH         n3 clears the bit and leaves the epoch
 *            PLAIN_STORE        n3 is a store
 *            FETCH_ADD          n3 is fetch_add(1), which carries a set bit into the epoch (loses no wake-up, but
 *                               two at once leave a bit that nobody set)
 *            WAKE_BEFORE_CLEAR  n4 before n3
 *            RELAXED_PUBLISH    n1 may wait in a store buffer while n2 reads
 *            RELAXED_BIT        w2 may wait in a store buffer while w3 reads
 */
#ifndef NW
#define NW 2
#endif
#ifndef NN
#define NN 2
#endif
#ifndef MSG
#define MSG 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef EPOCHS
#define EPOCHS 32
#endif

#define BIT(w)        ((w) & 1)
#define NEXT_EPOCH(w) ((((w) >> 1) + 1) % EPOCHS * 2)

/* ---- shared memory, and the kernel's queue of sleepers ---- */
byte word;
byte items;
bool asleep[NW];

/* ---- bookkeeping of the specification; decides no step ---- */
byte kills = KILLS;
byte paid;                     /* bits set by waiters and not yet answered by a wake-up */
byte rechecks[NW];             /* time-outs that this waiter may still need */
bool committed[NW];            /* between w2 and w5 */
hidden byte i;

#define W1 1
#define W2 2
#define W2B 3
#define W3 4
#define LATE 5
#define W4 6
#define W5 7
#define OVER 8                 /* killed, stopped for ever, or finished */

proctype Waiter(byte me)
{
    byte pc = W1;
    byte key;
    bool buffered;             /* RELAXED_BIT: w2 is in the store buffer */

end:
    do
    /* killed: the kernel takes it out of its queue.  A store in flight still reaches memory. */
    :: d_step { pc != OVER && kills > 0 ->
           kills--; pc = OVER; key = 0; asleep[me] = false; committed[me] = false; rechecks[me] = 0;
           if :: buffered -> paid = paid + 1 - BIT(word); word = word | 1; buffered = false :: else fi }
    /* stopped for ever: it stays in the queue */
    :: d_step { pc == W5 && kills > 0 -> kills--; pc = OVER; key = 0; committed[me] = false; rechecks[me] = 0 }

    :: d_step { pc == W1 -> if :: items > 0 -> items-- :: else -> pc = W2 fi }

#ifdef RELAXED_BIT
    :: d_step { pc == W2 -> buffered = true; committed[me] = true; pc = W3 }
    :: d_step { buffered -> paid = paid + 1 - BIT(word); word = word | 1; key = word; buffered = false }
#else
    :: d_step { pc == W2 -> paid = paid + 1 - BIT(word); word = word | 1; key = word; committed[me] = true;
#ifdef NO_RELOOK
           pc = W4
#else
           pc = W3
#endif
       }
#endif
    :: d_step { pc == W3 ->
           if
           :: items > 0 -> items--; committed[me] = false; key = 0; rechecks[me] = 0; pc = W1
           :: else ->
#ifdef LATE_KEY
              pc = LATE
#else
              pc = W4
#endif
           fi }
    :: d_step { pc == LATE -> key = word; pc = W4 }
    :: d_step { pc == W4 && !buffered ->
           if
           :: word == key -> asleep[me] = true
           :: else
           fi; key = 0; pc = W5 }
    :: d_step { pc == W5 && !asleep[me] -> committed[me] = false; rechecks[me] = 0; pc = W1 }
    /* the re-check interval is over; only where it is allowed to be needed, so that its use elsewhere shows */
    :: d_step { timeout && pc == W5 && asleep[me] && items > 0 && rechecks[me] > 0 ->
           rechecks[me]--; asleep[me] = false }
    od
}

#define N1 1
#define N2 2
#define N3 3
#define N4 4
#define N0 9

#ifdef LOAD_FIRST
#define START N2
#else
#define START N1
#endif

proctype Notifier()
{
    byte pc = START;
    byte seen;
    byte sent;
    bool published;            /* this round's n1 is done, its n4 is not */
    bool buffered;             /* RELAXED_PUBLISH: n1 is in the store buffer */

end:
    do
    :: d_step { pc != OVER && kills > 0 ->
           kills--; pc = OVER; seen = 0; sent = 0;
           if :: buffered -> items++; buffered = false :: else fi;
           i = 0;
           do
           :: i < NW -> if :: published && committed[i] -> rechecks[i] = 1 :: else fi; i++
           :: else -> break
           od; i = 0; published = false }

    :: d_step { pc == N0 -> published = false; seen = 0; sent++;
           if :: sent == MSG -> sent = 0; pc = OVER :: else -> pc = START fi }

#ifdef RELAXED_PUBLISH
    :: d_step { pc == N1 && !buffered -> buffered = true; published = true; pc = N2 }
    :: d_step { buffered -> items++; buffered = false }
#elif defined(LOAD_FIRST)
    :: d_step { pc == N1 -> items++; published = true; pc = (BIT(seen) -> N3 : N0) }
#else
    :: d_step { pc == N1 -> items++; published = true; pc = N2 }
#endif

#ifdef LOAD_FIRST
    :: d_step { pc == N2 -> seen = word; pc = N1 }
#elif defined(WAKE_BEFORE_CLEAR)
    :: d_step { pc == N2 -> seen = word; pc = (BIT(seen) -> N4 : N0) }
#else
    :: d_step { pc == N2 -> seen = word; pc = (BIT(seen) -> N3 : N0) }
#endif

    /* a read-modify-write and a system call wait until the store buffer is empty */
    :: d_step { pc == N3 && !buffered ->
#if defined(PLAIN_STORE)
           paid = 0; word = NEXT_EPOCH(seen); pc = N4
#elif defined(FETCH_ADD)
           assert(paid > 0); paid--; word = (word + 1) % (2 * EPOCHS); pc = N4
#elif defined(WAKE_BEFORE_CLEAR)
           if :: word == seen -> paid--; word = NEXT_EPOCH(seen) :: else fi; pc = N0
#else
           if
           :: word == seen ->
                  assert(paid > 0); paid--;
#ifdef SAME_EPOCH
                  word = seen - 1;
#else
                  word = NEXT_EPOCH(seen);
#endif
#ifdef SILENT_CLEAR
                  pc = N0
#else
                  pc = N4
#endif
           :: else -> pc = N0
           fi
#endif
       }
#ifdef WAKE_ONE
    :: d_step { pc == N4 && asleep[0] -> asleep[0] = false; pc = N0 }
    :: d_step { pc == N4 && asleep[1] -> asleep[1] = false; pc = N0 }
    :: d_step { pc == N4 && !asleep[0] && !asleep[1] -> pc = N0 }
#else
    :: d_step { pc == N4 ->
           i = 0; do :: i < NW -> asleep[i] = false; i++ :: else -> break od; i = 0;
#ifdef WAKE_BEFORE_CLEAR
           pc = N3
#else
           pc = N0
#endif
       }
#endif
    od
}

/* Whenever nobody can move: who still sleeps has nothing to do, or is waiting for the re-check it may need. */
proctype Judge()
{
end:
    d_step { timeout ->
        i = 0;
        do
        :: i < NW -> assert(!(asleep[i] && committed[i] && items > 0 && rechecks[i] == 0)); i++
        :: else -> break
        od; i = 0 }
}

init {
    atomic {
        byte n = 0;
        do :: n < NW -> run Waiter(n); n++ :: else -> break od;
        n = 0;
        do :: n < NN -> run Notifier(); n++ :: else -> break od;
        run Judge(); n = 0
    }
}
