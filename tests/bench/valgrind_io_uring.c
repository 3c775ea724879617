/*
 * Preloaded into a program under valgrind: waits for io_uring without blocking in the kernel.
 *
 * valgrind runs one thread at a time and gives its lock away in system calls which it knows to block. Debian 12's 3.19
 * does not know that of io_uring_enter: the first worker that goes to sleep stops the whole process. Here such a call
 * looks for completions, sleeps a little in a call that valgrind does know, and returns, which to the caller is an
 * early wake-up. Workers that have traffic never come here, so it adds nothing to the instructions that are counted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

static long raw(long n, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

long syscall(long n, ...)
{
	va_list list;
	long v[6], result;

	va_start(list, n);
	for (int i = 0; i < 6; i++)
		v[i] = va_arg(list, long);
	va_end(list);
	if (n == SYS_io_uring_enter && v[2] > 0) {
		v[2] = 0;
		result = raw(n, v[0], v[1], v[2], v[3], v[4], v[5]);
		usleep(200);
	} else {
		result = raw(n, v[0], v[1], v[2], v[3], v[4], v[5]);
	}
	if (result < 0 && result > -4096) {
		errno = (int)-result;
		return -1;
	}
	return result;
}
