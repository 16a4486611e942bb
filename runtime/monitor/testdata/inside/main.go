// Inside is the program that the tests run in a container: "echo WORD...",
// "cat", "write FILE TEXT", "wait" (for ever, until SIGTERM, then status 9),
// "listen ADDRESS" (at a TCP port, and wait).
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	switch args := os.Args[1:]; args[0] {
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "write":
		if err := os.WriteFile(args[1], []byte(args[2]), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "listen":
		if _, err := net.Listen("tcp", args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fallthrough
	case "wait":
		fmt.Println("ready")
		<-term
		os.Exit(9)
	}
}
