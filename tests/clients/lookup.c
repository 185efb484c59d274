/* Prints the addresses of a name as this C library's getaddrinfo finds them, one a line. */
#define _POSIX_C_SOURCE 200809L
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **words)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    if (count != 2)
        return 64;
    int error = getaddrinfo(words[1], NULL, &hints, &found);
    if (error) {
        fprintf(stderr, "%s: %s\n", words[1], gai_strerror(error));
        return error == EAI_NONAME ? 3 : 1;
    }
    for (struct addrinfo *one = found; one; one = one->ai_next) {
        char text[64];
        if (getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST))
            return 1;
        puts(text);
    }
    freeaddrinfo(found);
    return 0;
}
