/* Breaks the CUDA context of the process that it is preloaded into, for tests of what the program does then.
 *
 *     cc -O2 -Wall -shared -fPIC -o sting.so sting.c -ldl -lpthread
 *     LD_PRELOAD=sting.so EDGEAPP_STING=FILE edgeapp serve ...
 *
 * A thread waits for FILE. Its content is the fault: "wild" (a write to an address that is none, CUDA error 700),
 * "crooked" (one that is not aligned, 716), "assert" (710) or "trap" (719). A kernel that does this is run in the
 * CUDA context that the program made last. Then FILE.done holds the CUDA error that the driver
 * answers with, and the monotonic time in nanoseconds at which it did.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HEAD ".version 6.4\n.target sm_75\n.address_size 64\n"

static const char writes[] = HEAD
    ".visible .entry sting(.param .u64 at) {\n"
    "  .reg .u64 %a; .reg .u32 %v;\n"
    "  ld.param.u64 %a, [at]; mov.u32 %v, 1; st.global.u32 [%a], %v; ret;\n"
    "}\n";

static const char traps[] = HEAD ".visible .entry sting(.param .u64 at) { trap; ret; }\n";

static const char asserts[] = HEAD
    ".extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n"
    ".global .align 1 .b8 text[6] = {115, 116, 105, 110, 103, 0};\n"
    ".visible .entry sting(.param .u64 at) {\n"
    "  .reg .u64 %p; .reg .u64 %one; .reg .u32 %line;\n"
    "  mov.u64 %p, text; cvta.global.u64 %p, %p; mov.u64 %one, 1; mov.u32 %line, 1;\n"
    "  { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;\n"
    "    st.param.b64 [a], %p; st.param.b64 [b], %p; st.param.b32 [c], %line; st.param.b64 [d], %p;\n"
    "    st.param.b64 [e], %one;\n"
    "    call.uni __assertfail, (a, b, c, d, e); }\n"
    "  ret;\n"
    "}\n";

typedef unsigned long long address_t;
static char file[4000];
static void *volatile made; /* the program's latest context */

static void nap(void)
{
    const struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}

static void *driver(void)
{
    return dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
}

/* In place of the driver's: what the program makes, it makes by them. */
int cuCtxCreate_v2(void **context, unsigned flags, int device)
{
    int (*create)(void **, unsigned, int) = (int (*)(void **, unsigned, int))dlsym(driver(), "cuCtxCreate_v2");
    int code = create(context, flags, device);
    if (code == 0)
        made = *context;
    return code;
}

int cuCtxCreate_v4(void **context, void *parameters, unsigned flags, int device)
{
    int (*create)(void **, void *, unsigned, int) =
        (int (*)(void **, void *, unsigned, int))dlsym(driver(), "cuCtxCreate_v4");
    int code = create(context, parameters, flags, device);
    if (code == 0)
        made = *context;
    return code;
}

static void tell(int code)
{
    char part[sizeof file + 8], done[sizeof file + 8];
    struct timespec now;
    FILE *out;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(part, sizeof part, "%s.part", file);
    snprintf(done, sizeof done, "%s.done", file);
    if ((out = fopen(part, "w"))) {
        fprintf(out, "%d %lld\n", code, now.tv_sec * 1000000000LL + now.tv_nsec);
        fclose(out);
        rename(part, done);
    }
}

/* The first error of: set, [allocate,] load, find, launch, synchronise. */
static int sting(void *library, const char *kind)
{
#define CALL(name, types, ...)                                                                 \
    do {                                                                                       \
        int(*call) types = (int(*) types)dlsym(library, name);                                 \
        int code = call ? call(__VA_ARGS__) : -1;                                              \
        if (code)                                                                              \
            return code;                                                                       \
    } while (0)
    void *module, *function;
    address_t at = 16;
    void *arguments[] = {&at};
    const char *ptx = strcmp(kind, "trap") == 0 ? traps : strcmp(kind, "assert") == 0 ? asserts : writes;
    CALL("cuCtxSetCurrent", (void *), made);
    if (strcmp(kind, "crooked") == 0) {
        CALL("cuMemAlloc_v2", (address_t *, size_t), &at, 4096);
        at += 1;
    }
    CALL("cuModuleLoadData", (void **, const void *), &module, ptx);
    CALL("cuModuleGetFunction", (void **, void *, const char *), &function, module, "sting");
    CALL("cuLaunchKernel",
         (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
         function, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL);
    CALL("cuCtxSynchronize", (void));
    return 0;
}

static void *wait_for_it(void *unused)
{
    char kind[16] = "";
    FILE *in;
    (void)unused;
    while (!(in = fopen(file, "r")))
        nap();
    if (!fgets(kind, sizeof kind, in))
        kind[0] = 0;
    fclose(in);
    while (!made)
        nap();
    tell(sting(driver(), kind));
    return NULL;
}

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("EDGEAPP_STING");
    pthread_t thread;
    sigset_t all, before;
    if (!name || strlen(name) >= sizeof file)
        return;
    strcpy(file, name);
    sigfillset(&all); /* the program's signals are the program's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_create(&thread, NULL, wait_for_it, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
