/* What ThreadSanitizer cannot see, told to it.
 *
 * Rust's std comes compiled, without ThreadSanitizer: where our code takes a lock at once, the atomic operation is
 * inlined and seen; where std's own code has to wait for it, it is not, and everything behind that lock looks like a race.
 * Each function below stands between our code and one of std's (the linker's --wrap; run.sh finds the names), calls it,
 * and says what it has ordered: no more than the function promises, on the same address that the inlined part uses.
 */
#include <stdbool.h>
#include <stdint.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

#define JOIN(a, b) JOIN_(a, b)
#define JOIN_(a, b) a##b
#define REAL(name) JOIN(__real_, name)
#define WRAP(name) JOIN(__wrap_, name)

/* Mutex::lock_contended(&self): has the lock when it returns. */
void REAL(LOCK_CONTENDED)(void *mutex);
void WRAP(LOCK_CONTENDED)(void *mutex) {
    REAL(LOCK_CONTENDED)(mutex);
    __tsan_acquire(mutex);
}

/* Condvar::wait(&self, &Mutex): gives the lock up, and has it again when it returns. */
void REAL(CONDVAR_WAIT)(void *condvar, void *mutex);
void WRAP(CONDVAR_WAIT)(void *condvar, void *mutex) {
    __tsan_release(mutex);
    REAL(CONDVAR_WAIT)(condvar, mutex);
    __tsan_acquire(mutex);
}

/* Condvar::wait_timeout(&self, &Mutex, Duration) -> bool: likewise. */
bool REAL(CONDVAR_WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t seconds, uint32_t nanoseconds);
bool WRAP(CONDVAR_WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t seconds, uint32_t nanoseconds) {
    __tsan_release(mutex);
    bool in_time = REAL(CONDVAR_WAIT_TIMEOUT)(condvar, mutex, seconds, nanoseconds);
    __tsan_acquire(mutex);
    return in_time;
}

/* RwLock::read_contended(&self) and write_contended(&self): have the lock when they return. */
void REAL(READ_CONTENDED)(void *lock);
void WRAP(READ_CONTENDED)(void *lock) {
    REAL(READ_CONTENDED)(lock);
    __tsan_acquire(lock);
}

void REAL(WRITE_CONTENDED)(void *lock);
void WRAP(WRITE_CONTENDED)(void *lock) {
    REAL(WRITE_CONTENDED)(lock);
    __tsan_acquire(lock);
}

/* Arc counts down with `Release`, and the last owner then runs `fence(Acquire)`. ThreadSanitizer knows no fences, so
 * whoever frees looks unordered. A count-down that is both has the same effect. */
enum { ACQUIRE_RELEASE = 4 };
uint64_t __real___tsan_atomic64_fetch_sub(volatile uint64_t *address, uint64_t by, int order);
uint64_t __wrap___tsan_atomic64_fetch_sub(volatile uint64_t *address, uint64_t by, int order);
uint64_t __wrap___tsan_atomic64_fetch_sub(volatile uint64_t *address, uint64_t by, int order) {
    (void)order;
    return __real___tsan_atomic64_fetch_sub(address, by, ACQUIRE_RELEASE);
}
