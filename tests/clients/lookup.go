// Prints the addresses of a name as Go's own resolver finds them, one a line.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := net.Resolver{PreferGo: true}
	addresses, err := resolver.LookupHost(context.Background(), os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		var missing *net.DNSError
		if errors.As(err, &missing) && missing.IsNotFound {
			os.Exit(3)
		}
		os.Exit(1)
	}
	for _, address := range addresses {
		fmt.Println(address)
	}
}
