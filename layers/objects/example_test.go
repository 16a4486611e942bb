package objects_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

func Example() {
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, err := objects.Open(dir, objects.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	hello := []byte("hello")
	if err := s.Put(layers.SumOf(hello), hello); err != nil {
		log.Fatal(err)
	}
	if err := s.Barrier(context.Background()); err != nil { // now a database may know of it
		log.Fatal(err)
	}
	p := make([]byte, 3)
	n, err := s.ReadAt(layers.SumOf(hello), p, 1)
	fmt.Printf("%s %v\n", p[:n], err)
	// Output: ell <nil>
}
