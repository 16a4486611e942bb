package seccomp

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:generate go run gen.go

// The numbers are embedded as text and read when a filter is compiled, which
// the cache makes rare. x/sys itself has only those of the architecture it is
// built for, and a filter has to know the 32-bit ones as well.
var (
	//go:embed tables/386.txt
	numbers386 string
	//go:embed tables/amd64.txt
	numbersAMD64 string
	//go:embed tables/arm.txt
	numbersARM string
	//go:embed tables/arm64.txt
	numbersARM64 string
)

// A table is the calls of one ABI.
type table struct {
	audit   uint32 // AUDIT_ARCH_*, as in seccomp_data.arch
	numbers map[string]uint32
}

// armPrivate is where the calls of 32-bit ARM that are not in the table begin
// (__ARM_NR_BASE, arch/arm/include/uapi/asm/unistd.h). Other ABIs have none so high.
const armPrivate = 0x0f0000

// x32Bit marks the calls of the x32 ABI, which shares its audit number with amd64's.
const x32Bit = 0x40000000

// nativeABIs are the ABIs of a machine, its own first.
var nativeABIs = map[string][]specs.Arch{
	"amd64": {specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
	"arm64": {specs.ArchAARCH64, specs.ArchARM},
}

var tables = map[specs.Arch]func() table{
	specs.ArchX86_64:  sync.OnceValue(func() table { return table{unix.AUDIT_ARCH_X86_64, parse(numbersAMD64)} }),
	specs.ArchX86:     sync.OnceValue(func() table { return table{unix.AUDIT_ARCH_I386, parse(numbers386)} }),
	specs.ArchX32:     sync.OnceValue(func() table { return table{unix.AUDIT_ARCH_X86_64, x32(parse(numbersAMD64))} }),
	specs.ArchAARCH64: sync.OnceValue(func() table { return table{unix.AUDIT_ARCH_AARCH64, parse(numbersARM64)} }),
	specs.ArchARM:     sync.OnceValue(func() table { return table{unix.AUDIT_ARCH_ARM, arm(parse(numbersARM))} }),
}

func parse(s string) map[string]uint32 {
	m := make(map[string]uint32, 512)
	for line := range strings.Lines(s) {
		num, name, ok := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(num, 10, 32)
		if !ok || err != nil {
			panic(fmt.Sprintf("embedded table: line %q", line))
		}
		m[name] = uint32(n)
	}
	return m
}

func arm(m map[string]uint32) map[string]uint32 {
	m["sync_file_range2"] = m["arm_sync_file_range"]
	for i, name := range []string{"breakpoint", "cacheflush", "usr26", "usr32", "set_tls"} {
		m[name] = armPrivate + 1 + uint32(i)
	}
	return m
}

// x32Calls have numbers of their own, from 512 (arch/x86/entry/syscalls/syscall_64.tbl).
const x32Calls = "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending " +
	"rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list get_robust_list " +
	"vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv process_vm_writev setsockopt " +
	"getsockopt io_setup io_submit execveat preadv2 pwritev2"

func x32(m map[string]uint32) map[string]uint32 {
	for i, name := range strings.Fields(x32Calls) {
		m[name] = 512 + uint32(i)
	}
	return m
}
