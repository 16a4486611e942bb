// Builds a filter with libseccomp: rules on standard input, BPF on standard output.
// Lines: "default ACTION", then "rule ACTION NR N (ARG OP A B)*". The prototypes are
// libseccomp 2.5's (seccomp.h), which Debian ships apart from the library.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct arg { unsigned int arg; int op; uint64_t a, b; };
void *seccomp_init(uint32_t action);
int seccomp_rule_add_array(void *ctx, uint32_t action, int nr, unsigned int n, const struct arg *args);
int seccomp_export_bpf(void *ctx, int fd);

int main(void) {
	char word[16];
	uint32_t action;
	if (scanf("%15s %" SCNu32, word, &action) != 2) return 1;
	void *ctx = seccomp_init(action);
	if (!ctx) return 2;
	int nr;
	unsigned int n;
	while (scanf("%15s %" SCNu32 " %d %u", word, &action, &nr, &n) == 4) {
		struct arg args[6];
		memset(args, 0, sizeof(args));
		for (unsigned int i = 0; i < n; i++)
			if (scanf("%u %d %" SCNu64 " %" SCNu64, &args[i].arg, &args[i].op, &args[i].a, &args[i].b) != 4) return 3;
		int err = seccomp_rule_add_array(ctx, action, nr, n, args);
		if (err) { fprintf(stderr, "rule for %d: %s\n", nr, strerror(-err)); return 4; }
	}
	return seccomp_export_bpf(ctx, 1) ? 5 : 0;
}
