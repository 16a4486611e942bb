package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// serve answers with its name and the address that it sees.
func serve(name string, at []string) {
	for _, a := range at {
		kind, port, _ := strings.Cut(a, ":")
		if kind == "udp" {
			c, err := net.ListenPacket("udp", ":"+port)
			check(err)
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := c.ReadFrom(b)
					check(err)
					_, err = c.WriteTo([]byte(name+" "+from.String()), from)
					check(err)
				}
			}()
			continue
		}
		l, err := net.Listen("tcp", ":"+port)
		check(err)
		go func() {
			for {
				c, err := l.Accept()
				check(err)
				fmt.Fprint(c, name+" "+c.RemoteAddr().String())
				c.Close()
			}
		}()
	}
	fmt.Println("serving")
	time.Sleep(time.Hour)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// ask returns what a server says.
func ask(kind, addr string) (string, error) {
	c, err := net.DialTimeout(kind, addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	b := make([]byte, 1000)
	n, err := c.Read(b)
	return string(b[:n]), err
}
