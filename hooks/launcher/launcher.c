/* What one file of edgeapp starts with: finds the program's files where an earlier start has unpacked them, or
 * unpacks them, and becomes the program (execve: the same process).
 *
 * A cache folder holds
 *   NAME/      one content, named by its manifest's SHA-256; complete, for it gets its name when it is
 *   .new-PID   what is being unpacked, or removed
 *   lock       held (flock) by who unpacks or removes; so a .new- that somebody finds then has no owner any more
 * Who runs a content holds a shared lock on its folder until he ends: it is not removed under him.
 *
 * To the program it says, in environment variables that the program takes away again:
 *   _EDGEAPP_FILE      the path of this file     _EDGEAPP_CONTENT   the content's name
 *   _EDGEAPP_LOCK      the file descriptor that holds the shared lock
 *   _EDGEAPP_SIGNALS   numbers of the signals that wait, blocked, until the program can handle them: Python's own
 *                      handler would end it with a stack trace, and as process 1 of a container it would miss them */
#define _GNU_SOURCE
#include "content.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* As in edgeapp/errors.py. */
enum { TRY_NEXT = -1, EXIT_REFUSED = 71, EXIT_CANNOT_WRITE = 73, EXIT_IO = 74, EXIT_NOT_PERMITTED = 77 };
enum { PLACES_MAX = 8, LOCK_MIN_FD = 10 };
enum { SAID_AFTER_TURNS = 5 * 50, GIVEN_UP_AFTER_TURNS = 300 * 50 }; /* 50 turns a second */

static const char COPY_AGAIN[] = "copy it again and compare sha256sum with the original";

extern char **environ;

volatile sig_atomic_t stop_signal;

/* ---- words ---- */

static const char *shown_size(uint64_t bytes) {
    static char text[2][32];
    static int turn;
    turn = !turn;
    snprintf(text[turn], sizeof text[turn], "%" PRIu64 " MB", (bytes + 999999) / 1000000);
    return text[turn];
}

static void complain(const char *what, const char *why, const char *fix) {
    fprintf(stderr, "edgeapp: %s\n  why: %s\n  fix: %s\n", what, why, fix);
}

static bool refused_errno(struct reason *why) { return fail(why, errno, "%s", strerror(errno)); }

/* ---- signals: they wait for the program; while files are half unpacked, they set a flag ---- */

static const int STOP_SIGNALS[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
enum { STOP_SIGNAL_COUNT = sizeof STOP_SIGNALS / sizeof *STOP_SIGNALS, WAITING_SIGNAL_COUNT = 3 /* for the program */ };
static struct sigaction actions_before[STOP_SIGNAL_COUNT], file_size_before;
static sigset_t mask_before, mask_waiting;

/* First of all, for the kernel spares process 1 of a container signals that it has no handler for. */
static void let_signals_wait(void) {
    sigprocmask(SIG_BLOCK, NULL, &mask_before);
    mask_waiting = mask_before;
    for (int i = 0; i < WAITING_SIGNAL_COUNT; i++)
        sigaddset(&mask_waiting, STOP_SIGNALS[i]);
    sigprocmask(SIG_SETMASK, &mask_waiting, NULL);
}

static void on_signal(int number) { stop_signal = number; }

static void catch_signals(void) {
    const struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: waiting ends */
    const struct sigaction ignore = {.sa_handler = SIG_IGN};   /* ulimit -f: then write() fails, as on a full disk */
    for (int i = 0; i < STOP_SIGNAL_COUNT; i++)
        if (sigaction(STOP_SIGNALS[i], NULL, &actions_before[i]) == 0 && actions_before[i].sa_handler != SIG_IGN)
            sigaction(STOP_SIGNALS[i], &action, NULL);
    sigaction(SIGXFSZ, &ignore, &file_size_before);
    sigprocmask(SIG_SETMASK, &mask_before, NULL);
}

/* Puts back what was; a signal that came in between has its effect now. */
static void release_signals(void) {
    sigprocmask(SIG_SETMASK, &mask_waiting, NULL);
    for (int i = 0; i < STOP_SIGNAL_COUNT; i++)
        sigaction(STOP_SIGNALS[i], &actions_before[i], NULL);
    sigaction(SIGXFSZ, &file_size_before, NULL);
    if (!stop_signal)
        return;
    raise(stop_signal);
    sigprocmask(SIG_SETMASK, &mask_before, NULL);
    _exit(128 + stop_signal); /* process 1 is still there */
}

/* ---- places for the cache ---- */

struct place {
    char *path;
    char *resolved;      /* the same without links, once it is open */
    const char *origin;  /* what names it */
    bool for_all;        /* all users look into it, only root writes */
    bool only_look;      /* nothing is made there */
    bool wanted;         /* said expressly */
    bool in_tmp;         /* in a folder where everybody may write */
    bool make_parents;   /* all of them, not only the last */
    int folder;          /* open, or -1 */
    struct reason why;   /* it cannot be used */
};

static struct place places[PLACES_MAX];
static int place_count;

static struct place *add_place(const char *origin, const char *base, const char *below) {
    struct place *place = &places[place_count++];
    *place = (struct place){.origin = origin, .folder = -1};
    if (asprintf(&place->path, "%s%s", base, below) < 0)
        abort();
    if (*place->path != '/')
        fail(&place->why, EINVAL, "it is no absolute path");
    return place;
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static void find_places(void) {
    static const char *for_all[] = {"/var/lib/edgeapp/cache", "/opt/edgeapp/cache"};
    struct place *place;
    char own[32];
    const char *value;
    if ((value = variable("EDGEAPP_CACHE"))) {
        place = add_place("EDGEAPP_CACHE", value, "");
        place->make_parents = place->wanted = true;
        place->for_all = geteuid() == 0 && (!strcmp(value, for_all[0]) || !strcmp(value, for_all[1]));
    }
    for (int i = 0; i < 2; i++) {
        place = add_place("for all users", for_all[i], "");
        place->for_all = place->only_look = true;
    }
    if ((value = variable("CACHE_DIRECTORY"))) {
        place = add_place("CACHE_DIRECTORY", value, "");
        place->path[strcspn(place->path, ":")] = '\0'; /* systemd lists several this way */
        place->wanted = true;
    }
    if ((value = variable("XDG_CACHE_HOME")))
        add_place("XDG_CACHE_HOME", value, "/edgeapp")->make_parents = true;
    if ((value = variable("HOME"))) {
        struct stat status;
        place = add_place("HOME", value, "/.cache/edgeapp");
        /* As after sudo: the owner of this home could not use what root makes there, or could change it. */
        if (!place->why.code && stat(value, &status) == 0 && status.st_uid != geteuid())
            fail(&place->why, EPERM, "HOME belongs to user %u", status.st_uid);
    }
    snprintf(own, sizeof own, "/edgeapp-%u", geteuid());
    add_place("last resort", "/var/tmp", own)->in_tmp = true;
    add_place("last resort", "/tmp", own)->in_tmp = true;
}

/* Makes the folder and the one above it, or all of those above. */
static bool make_folder(const struct place *place) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s", place->path) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return false;
    }
    const mode_t mode = place->for_all ? 0755 : 0700;
    const char *last = strrchr(path, '/');
    for (char *slash = path + 1; !place->in_tmp && (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        if ((place->make_parents || slash == last) && mkdir(path, mode) && errno != EEXIST)
            return false;
        *slash = '/';
    }
    return mkdir(path, mode) == 0 || errno == EEXIST;
}

/* Nobody but root and this user may put another folder in the place of one above: the program is run by its path, and
 * loads its modules by theirs. In a user namespace root's folders belong to whom / belongs to. */
static bool safe_above(int folder, struct reason *why) {
    struct stat root, stat, below;
    int above = fcntl(folder, F_DUPFD_CLOEXEC, 0);
    bool safe = above >= 0 && fstat(above, &below) == 0 && fstatat(above, "/", &root, 0) == 0;
    if (!safe)
        refused_errno(why);
    while (safe) {
        const int next = openat(above, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (next < 0 || fstat(next, &stat)) {
            safe = refused_errno(why);
        } else if (stat.st_ino == below.st_ino && stat.st_dev == below.st_dev) {
            close(next);
            break;
        } else if (stat.st_uid != 0 && stat.st_uid != geteuid() && stat.st_uid != root.st_uid) {
            safe = fail(why, EPERM, "a folder above it belongs to user %u", stat.st_uid);
        } else if ((stat.st_mode & S_IWOTH || (stat.st_mode & S_IWGRP && stat.st_gid != getegid() && stat.st_gid != 0)) &&
                   !(stat.st_mode & S_ISVTX)) {
            safe = fail(why, EPERM, "others may write to a folder above it (mode %04o)", stat.st_mode & 07777);
        }
        close(above);
        above = next;
        below = stat;
    }
    if (above >= 0)
        close(above);
    return safe;
}

/* The path to run the program by; PyInstaller puts it into LD_LIBRARY_PATH, where some letters have a meaning. */
static bool resolve(struct place *place, const struct stat *opened) {
    struct stat stat;
    place->resolved = realpath(place->path, NULL);
    if (!place->resolved || lstat(place->resolved, &stat))
        return refused_errno(&place->why);
    if (stat.st_ino != opened->st_ino || stat.st_dev != opened->st_dev)
        return fail(&place->why, EPERM, "it was exchanged just now");
    return !strpbrk(place->resolved, ":;$") || fail(&place->why, EINVAL, "its path has one of the letters : ; $");
}

/* Opens the folder if it is there, programs may run in it, and nobody else can have put something into it. */
static bool open_place(struct place *place) {
    struct stat stat, above;
    struct statvfs system;
    struct reason *why = &place->why;
    if (why->code || place->folder >= 0)
        return !why->code;
    /* A link of root's or of this user's is fine, as systemd makes one for DynamicUser=; not where all may write. */
    if (lstat(place->path, &stat))
        return refused_errno(why);
    if (S_ISLNK(stat.st_mode) && (place->in_tmp || place->for_all))
        return fail(why, ELOOP, "it is a link");
    if (stat.st_uid != geteuid() && stat.st_uid != 0)
        return fail(why, EPERM, "it belongs to user %u", stat.st_uid);
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | (place->in_tmp || place->for_all ? O_NOFOLLOW : 0);
    const int folder = open(place->path, flags);
    if (folder < 0 || fstat(folder, &stat))
        return refused_errno(why);
    if (!safe_owner(&stat)) {
        fail(why, EPERM, "others may write to it (user %u, mode %03o)", stat.st_uid, stat.st_mode & 0777);
    } else if (place->for_all &&
               (stat.st_uid || fstatat(folder, "..", &above, 0) || above.st_uid || !safe_owner(&above))) {
        fail(why, EPERM, "it or the folder above is not root's alone");
    } else if (fstatvfs(folder, &system)) {
        refused_errno(why);
    } else if (system.f_flag & ST_NOEXEC) {
        fail(why, EACCES, "programs may not run there (mounted noexec)");
    } else if (safe_above(folder, why) && resolve(place, &stat)) {
        place->folder = folder;
        return true;
    }
    close(folder);
    return false;
}

static bool may_be_written(const struct place *place, struct reason *why) {
    struct statvfs system;
    if (fstatvfs(place->folder, &system))
        return refused_errno(why);
    return !(system.f_flag & ST_RDONLY) || fail(why, EROFS, "read-only file system");
}

static bool room_for(const struct content *content, const struct place *place, struct reason *why) {
    struct statvfs system;
    if (fstatvfs(place->folder, &system))
        return refused_errno(why);
    const uint64_t unit = system.f_frsize ? system.f_frsize : system.f_bsize;
    const uint64_t wanted = content->unpacked + content->item_count * unit, there = system.f_bavail * unit;
    /* A file system without a size, as some in memory are, says 0 blocks. */
    if (system.f_blocks && there < wanted)
        return fail(why, ENOSPC, "%s wanted, %s free", shown_size(wanted), shown_size(there));
    return true;
}

/* ---- removing ---- */

static void remove_below(int parent, const char *name) {
    if (unlinkat(parent, name, 0) == 0 || (errno != EISDIR && errno != EPERM))
        return;
    int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = folder < 0 ? NULL : fdopendir(folder);
    struct dirent *entry;
    while (list && (entry = readdir(list)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            remove_below(folder, entry->d_name);
    if (list)
        closedir(list);
    else if (folder >= 0)
        close(folder);
    unlinkat(parent, name, AT_REMOVEDIR);
}

static bool is_temporary(const char *name) { return strncmp(name, ".new-", 5) == 0; }

static const char *temporary_name(void) {
    static char name[64];
    static int count;
    snprintf(name, sizeof name, ".new-%d-%d", getpid(), count++);
    return name;
}

/* First out of sight, so that nobody starts it half removed; false if a running program uses it. Only with the lock. */
static bool remove_content(int cache, const char *name) {
    const char *temporary = temporary_name();
    const int folder = openat(cache, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    const bool unused = folder < 0 || flock(folder, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
    if (unused && renameat(cache, name, cache, temporary) == 0)
        remove_below(cache, temporary);
    if (folder >= 0)
        close(folder);
    return unused;
}

static bool is_content_name(const char *name) {
    return strlen(name) == 32 && strspn(name, "0123456789abcdef") == 32;
}

/* Removes what killed starts have left, and other contents that nobody runs; of these the newest stays if
 * `keep_newest`. Only with the lock. */
static void tidy(int cache, const char *current, bool keep_newest) {
    char newest[33] = "";
    struct timespec newest_time = {0};
    struct dirent *entry;
    struct stat stat;
    DIR *list = fdopendir(openat(cache, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!list)
        return;
    while ((entry = readdir(list))) {
        if (is_temporary(entry->d_name))
            remove_below(cache, entry->d_name);
        if (!is_content_name(entry->d_name) || strcmp(entry->d_name, current) == 0 ||
            fstatat(cache, entry->d_name, &stat, AT_SYMLINK_NOFOLLOW))
            continue;
        /* st_ctim: when it got its name; nobody can set that time. */
        if (stat.st_ctim.tv_sec > newest_time.tv_sec ||
            (stat.st_ctim.tv_sec == newest_time.tv_sec && stat.st_ctim.tv_nsec > newest_time.tv_nsec)) {
            newest_time = stat.st_ctim;
            strcpy(newest, entry->d_name);
        }
    }
    rewinddir(list);
    while ((entry = readdir(list))) {
        if (!is_content_name(entry->d_name) || strcmp(entry->d_name, current) == 0 ||
            (keep_newest && strcmp(entry->d_name, newest) == 0))
            continue;
        remove_content(cache, entry->d_name);
    }
    closedir(list);
}

/* ---- the C library ---- */

/* Version of this system's glibc; {0, 0} if it is not where distributions have it. */
static void host_glibc(int version[2]) {
    static const char *files[] = {"/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6",
                                  "/lib64/libc.so.6", "/usr/lib/libc.so.6"};
    static const char banner[] = " release version "; /* GNU C Library (Debian ...) stable release version 2.36. */
    version[0] = version[1] = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files && !version[0]; i++) {
        struct stat stat;
        const int file = open(files[i], O_RDONLY | O_CLOEXEC);
        char *text = file >= 0 && fstat(file, &stat) == 0 ? malloc((size_t)stat.st_size + 1) : NULL;
        const ssize_t size = text ? read(file, text, (size_t)stat.st_size) : -1;
        if (size > 0) {
            text[size] = '\0';
            const char *found = memmem(text, (size_t)size, banner, sizeof banner - 1);
            if (!found || sscanf(found + sizeof banner - 1, "%d.%d", &version[0], &version[1]) != 2)
                version[0] = version[1] = 0;
        }
        free(text);
        if (file >= 0)
            close(file);
    }
}

/* Ends the program where its files could not be loaded: the dynamic loader would say so in riddles. */
static void need_glibc(const struct content *content) {
    int version[2];
    char what[128];
    host_glibc(version);
    if (!version[0] || version[0] > content->glibc[0] ||
        (version[0] == content->glibc[0] && version[1] >= content->glibc[1]))
        return;
    snprintf(what, sizeof what, "cannot start: this system has glibc %d.%d, the program needs %d.%d or newer", version[0],
             version[1], content->glibc[0], content->glibc[1]);
    complain(what, "it was built on a newer system", "use the file that ./build.sh portable makes, or a newer system");
    exit(EXIT_REFUSED);
}

/* ---- finding and unpacking ---- */

/* Whether what was found says that files were changed, and not that this process could not look. */
static bool means_damage(const struct reason *why) {
    return why->code == ESTALE || why->code == ENOENT || why->code == ENOTDIR || why->code == ELOOP;
}

/* The content's folder, open and with the shared lock, if it is whole; else -1, with a reason in the place if that is of
 * no use. The first look says what it finds wrong. With the cache's lock, nobody can be removing it for long. */
static int open_content(const struct content *content, struct place *place, bool every_byte, bool locked) {
    struct reason why = {0};
    struct stat opened, named;
    int folder = openat(place->folder, content->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0)
        return -1;
    /* Refused by one who removes it; some read-only file systems know no locks, and need none. Where all users look,
     * any of them could hold one, and root, who alone removes, takes the folder's name away first. */
    if (flock(folder, locked && !place->for_all ? LOCK_SH : LOCK_SH | LOCK_NB) &&
        (errno == EWOULDBLOCK || errno == EINTR) && !place->for_all)
        goto absent;
    if (fstat(folder, &opened) || fstatat(place->folder, content->name, &named, AT_SYMLINK_NOFOLLOW) ||
        opened.st_ino != named.st_ino)
        goto absent;
    if (!content_is_whole(content, folder, every_byte, &why)) {
        if (!means_damage(&why))
            place->why = why;
        else if (!locked)
            fprintf(stderr, "edgeapp: not using the files in %s/%s: %s\n", place->path, content->name, why.text);
        goto absent;
    }
    return folder;
absent:
    close(folder);
    return -1;
}

/* Waits for others who do the same, but not for ever: one of them may be stopped. */
static bool take_lock(const struct place *place, int *lock, struct reason *why) {
    const struct timespec pause = {.tv_nsec = 20000000};
    *lock = openat(place->folder, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (*lock < 0)
        return refused_errno(why);
    for (int turn = 0; flock(*lock, LOCK_EX | LOCK_NB); turn++) {
        if (stop_signal)
            return fail(why, EINTR, "a signal came");
        if (errno != EINTR && errno != EWOULDBLOCK)
            return fail(why, errno, "cannot lock it: %s", strerror(errno));
        if (turn == SAID_AFTER_TURNS)
            fprintf(stderr, "edgeapp: waiting for another start, which unpacks into %s\n", place->path);
        if (turn == GIVEN_UP_AFTER_TURNS)
            return fail(why, EAGAIN, "another start has unpacked into it for %d s", GIVEN_UP_AFTER_TURNS / 50);
        nanosleep(&pause, NULL);
    }
    return true;
}

/* Unpacks under another name; the right one comes when everything is there and on the disk. */
static bool unpack_into(const struct content *content, const struct place *place, struct reason *why) {
    const char *name = temporary_name();
    struct reason broken;
    if (mkdirat(place->folder, name, 0700))
        return refused_errno(why);
    int folder = openat(place->folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool done = folder >= 0 ? content_unpack(content, folder, why) : refused_errno(why);
    /* What this file system does not keep, times or modes, would be missed at every start. */
    if (done && !content_is_whole(content, folder, false, &broken))
        done = fail(why, ENOTSUP, "the file system does not keep what is written (%s)", broken.text);
    if (done && renameat(place->folder, name, place->folder, content->name))
        done = refused_errno(why);
    if (done)
        fsync(place->folder);
    else
        remove_below(place->folder, name);
    if (folder >= 0)
        close(folder);
    return done;
}

/* The content's folder as of open_content, unpacked if need be; -1 with the reason in the place. */
static int unpack_once(const struct content *content, struct place *place, bool every_byte) {
    struct reason *why = &place->why;
    int lock = -1, folder = -1;
    need_glibc(content);
    if (why->code == ENOENT && make_folder(place))
        why->code = 0;
    else if (why->code == ENOENT)
        refused_errno(why);
    if (!open_place(place) || !may_be_written(place, why))
        return -1;
    if (!take_lock(place, &lock, why))
        goto end;
    folder = open_content(content, place, every_byte, true); /* somebody else may have been faster */
    if (folder >= 0 || stop_signal || why->code)
        goto end;
    tidy(place->folder, content->name, true);
    if (!remove_content(place->folder, content->name)) {
        fail(why, EBUSY, "the files in it were changed, and a running program uses them");
        goto end;
    }
    if (!room_for(content, place, why)) {
        tidy(place->folder, content->name, false);
        if (!room_for(content, place, why))
            goto end;
        why->code = 0;
    }
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "edgeapp: unpacking %s into %s, this once\n", shown_size(content->unpacked), place->path);
    if (unpack_into(content, place, why))
        folder = open_content(content, place, false, true);
end:
    if (lock >= 0)
        close(lock);
    return folder;
}

/* The same, with signals and the mask of new files' modes put back; ends the program where no place would do. */
static int make_content(const struct content *content, struct place *place, bool every_byte) {
    const mode_t umask_before = umask(0022);
    catch_signals();
    const int folder = unpack_once(content, place, every_byte);
    umask(umask_before);
    release_signals();
    if (folder < 0 && place->why.code == EBADMSG) {
        complain("cannot unpack itself", place->why.text, COPY_AGAIN);
        exit(EXIT_IO);
    }
    return folder;
}

static int no_place(const struct content *content) {
    bool permissions = true;
    const char *size = shown_size(content->unpacked);
    fprintf(stderr, "edgeapp: cannot unpack %s of program files: no folder can hold them\n", size);
    for (int i = 0; i < place_count; i++) {
        if (places[i].only_look)
            continue;
        permissions = permissions && (places[i].why.code == EACCES || places[i].why.code == EPERM);
        fprintf(stderr, "  why: %s (%s): %s\n", places[i].path, places[i].origin, places[i].why.text);
    }
    fprintf(stderr, "  fix: set EDGEAPP_CACHE to a folder of your own with %s free, where programs may run\n", size);
    return permissions ? EXIT_NOT_PERMITTED : EXIT_CANNOT_WRITE;
}

/* ---- becoming the program ---- */

static void tell(const char *name, const char *value) {
    if (setenv(name, value, 1))
        abort();
}

/* Does not return, but for the exit code, or TRY_NEXT with the reason in the place. */
static int become(const struct content *content, struct place *place, int folder, const char *own_path, char **words) {
    char *program, number[16], numbers[32] = "";
    if (asprintf(&program, "%s/%s/%s", place->resolved, content->name, content->program) < 0)
        abort();
    /* Above 2, lest it is taken for a standard stream that was closed; and not closed by execve. */
    int lock = fcntl(folder, F_DUPFD, LOCK_MIN_FD);
    if (lock >= 0) {
        close(folder);
    } else {
        lock = folder; /* ulimit -n: it keeps its number, which main made larger than 2 */
        fcntl(lock, F_SETFD, 0);
    }
    snprintf(number, sizeof number, "%d", lock);
    if (*own_path)
        tell("_EDGEAPP_FILE", own_path);
    tell("_EDGEAPP_CONTENT", content->name);
    tell("_EDGEAPP_LOCK", number);
    for (int i = 0; i < WAITING_SIGNAL_COUNT; i++)
        if (!sigismember(&mask_before, STOP_SIGNALS[i]))
            snprintf(numbers + strlen(numbers), 8, "%d ", STOP_SIGNALS[i]);
    tell("_EDGEAPP_SIGNALS", numbers);
    if (access("/proc/self/exe", F_OK))
        words[0] = program; /* without /proc the program finds itself by this word */
    execve(program, words, environ);
    if (errno == EACCES) {
        fail(&place->why, EACCES, "programs may not run there (%s)", strerror(errno));
        close(lock);
        return TRY_NEXT;
    }
    if (errno == ENOENT)
        complain("cannot start", "this system lacks the loader of the GNU C library (glibc)",
                 "use a distribution with glibc; Alpine and other systems with musl have none");
    else
        fprintf(stderr, "edgeapp: cannot start %s\n  why: %s\n", program, strerror(errno));
    return errno == EPERM ? EXIT_NOT_PERMITTED : EXIT_REFUSED;
}

/* Services and who asks for it have every byte checked, not only sizes and times: 0.1 s for 100 MB. */
static bool wants_every_byte(int count, char **words) {
    const char *value = variable("EDGEAPP_VERIFY");
    return (value && strcmp(value, "0")) || (count > 1 && (!strcmp(words[1], "serve") || !strcmp(words[1], "cache")));
}

int main(int count, char **words) {
    static char own_path[PATH_MAX];
    struct content content;
    struct reason why;
    static char *no_words[] = {"edgeapp", NULL};
    struct stat opened, named;
    if (getauxval(AT_SECURE)) {
        complain("cannot start", "it has the set-user-ID or set-group-ID bit, or file capabilities",
                 "chmod ug-s edgeapp; use sudo, or User= of a systemd unit");
        return EXIT_NOT_PERMITTED;
    }
    let_signals_wait();
    if (count < 1)
        words = no_words;
    /* A closed standard stream must not become one of our files, nor be open later. */
    int placeholder;
    do
        placeholder = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (placeholder >= 0 && placeholder <= STDERR_FILENO);
    if (placeholder >= 0)
        close(placeholder);

    ssize_t length = readlink("/proc/self/exe", own_path, sizeof own_path - 1);
    if (length < 0 && !realpath((const char *)getauxval(AT_EXECFN), own_path))
        snprintf(own_path, sizeof own_path, "%s", words[0]);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        file = open(own_path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        complain("cannot read its own file", strerror(errno), "chmod a+r edgeapp; it reads itself to start");
        return EXIT_NOT_PERMITTED;
    }
    /* Replaced or deleted since: then no path leads to this file. */
    if (fstat(file, &opened) || stat(own_path, &named) || opened.st_ino != named.st_ino || opened.st_dev != named.st_dev)
        *own_path = '\0';
    if (!content_read(&content, file, &why)) {
        complain("cannot start from this file", why.text, COPY_AGAIN);
        return EXIT_IO;
    }
    find_places();
    const bool every_byte = wants_every_byte(count, words);
    for (int i = 0; i < place_count; i++) {
        struct place *place = &places[i];
        int folder = open_place(place) ? open_content(&content, place, every_byte, false) : -1;
        /* Where somebody wants the files, they shall lie, even if a later place has them. */
        if (folder < 0 && place->wanted)
            folder = make_content(&content, place, every_byte);
        const int code = folder < 0 ? TRY_NEXT : become(&content, place, folder, own_path, words);
        if (code != TRY_NEXT)
            return code;
        if (place->wanted)
            fprintf(stderr, "edgeapp: not using %s=%s: %s\n", place->origin, place->path, place->why.text);
    }
    for (int i = 0; i < place_count; i++) {
        struct place *place = &places[i];
        int folder = place->wanted || place->only_look ? -1 : make_content(&content, place, every_byte);
        const int code = folder < 0 ? TRY_NEXT : become(&content, place, folder, own_path, words);
        if (code != TRY_NEXT)
            return code;
    }
    return no_place(&content);
}
