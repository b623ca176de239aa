//go:build ignore

// sink: the least that a reader of NFLOG can cost. It binds one group, reads with recvmmsg,
// walks the messages for their sequence numbers, and throws everything away.
//
//	sink [-g GROUP] [-q QTHRESH] [-n NLBUFSIZ] [-r RCVBUF] [-c COPY_RANGE] [-v BATCH]
//
// It says "ready" on stdout when the group is bound. SIGINT or SIGTERM end it; then it
// prints one line: packets, lost (gaps in the sequence), datagrams, bytes, user and
// system CPU time in nanoseconds.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_log.h>
#include <linux/netlink.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { slot_size = 256 << 10, packet_type = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET };

static volatile sig_atomic_t ended;

static void on_signal(int number)
{
	(void)number;
	ended = 1;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

// configure sends one configuration attribute and waits for its acknowledgement.
static void configure(int fd, uint16_t group, uint16_t type, const void *value, size_t length)
{
	struct {
		struct nlmsghdr header;
		struct nfgenmsg gen;
		struct nlattr attr;
		char value[64];
	} m = {
		.header = { .nlmsg_len = sizeof m.header + sizeof m.gen + NLA_HDRLEN + NLMSG_ALIGN(length),
			    .nlmsg_type = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
		.gen = { .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(group) },
		.attr = { .nla_len = NLA_HDRLEN + length, .nla_type = type },
	};
	char answer[8192];

	memcpy(m.value, value, length);
	if (send(fd, &m, m.header.nlmsg_len, 0) < 0)
		fail("send configuration");
	for (;;) {
		ssize_t n = recv(fd, answer, sizeof answer, 0);
		struct nlmsghdr *h = (struct nlmsghdr *)answer;

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n < 0)
			fail("receive acknowledgement");
		if (n >= (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) && h->nlmsg_type == NLMSG_ERROR) {
			errno = -((struct nlmsgerr *)NLMSG_DATA(h))->error;
			if (errno)
				fail("configure the group");
			return;
		}
	}
}

static uint32_t sequence(const char *message, uint32_t length)
{
	uint32_t at = NLMSG_HDRLEN + sizeof(struct nfgenmsg);

	while (at + NLA_HDRLEN <= length) {
		const struct nlattr *a = (const struct nlattr *)(message + at);

		if (a->nla_len < NLA_HDRLEN)
			break;
		if (a->nla_type == NFULA_SEQ && at + NLA_HDRLEN + 4 <= length) {
			uint32_t n;

			memcpy(&n, message + at + NLA_HDRLEN, sizeof n);
			return ntohl(n);
		}
		at += NLMSG_ALIGN(a->nla_len);
	}
	return 0;
}

static long long nanoseconds(struct timeval t)
{
	return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL;
}

int main(int argc, char **argv)
{
	int group = 1, receive_buffer = 64 << 20, batch = 16, one = 1, option;
	unsigned threshold = 65535, buffer = 65216, range = 65535;

	while ((option = getopt(argc, argv, "g:q:n:r:c:v:")) != -1) {
		switch (option) {
		case 'g': group = atoi(optarg); break;
		case 'q': threshold = atoi(optarg); break;
		case 'n': buffer = atoi(optarg); break;
		case 'r': receive_buffer = atoi(optarg); break;
		case 'c': range = atoi(optarg); break;
		case 'v': batch = atoi(optarg); break;
		default: return 2;
		}
	}
	struct sigaction action = { .sa_handler = on_signal };
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);

	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		fail("netlink socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer, sizeof receive_buffer) < 0)
		fail("SO_RCVBUFFORCE");
	if (setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof one) < 0)
		fail("NETLINK_NO_ENOBUFS");

	struct nfulnl_msg_config_cmd bind_group = { NFULNL_CFG_CMD_BIND };
	struct nfulnl_msg_config_mode mode = { .copy_range = htonl(range), .copy_mode = NFULNL_COPY_PACKET };
	uint32_t nlbufsiz = htonl(buffer), qthresh = htonl(threshold), timeout = htonl(10);
	uint16_t flags = htons(NFULNL_CFG_F_SEQ);
	configure(fd, group, NFULA_CFG_CMD, &bind_group, sizeof bind_group);
	configure(fd, group, NFULA_CFG_NLBUFSIZ, &nlbufsiz, sizeof nlbufsiz);
	configure(fd, group, NFULA_CFG_QTHRESH, &qthresh, sizeof qthresh);
	configure(fd, group, NFULA_CFG_TIMEOUT, &timeout, sizeof timeout);
	configure(fd, group, NFULA_CFG_FLAGS, &flags, sizeof flags);
	configure(fd, group, NFULA_CFG_MODE, &mode, sizeof mode);
	struct timeval patience = { .tv_usec = 100000 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);

	struct mmsghdr *messages = calloc(batch, sizeof *messages);
	struct iovec *slots = calloc(batch, sizeof *slots);
	for (int i = 0; i < batch; i++) {
		slots[i].iov_base = malloc(slot_size);
		slots[i].iov_len = slot_size;
		memset(slots[i].iov_base, 0, slot_size); // populated before the first packet
		messages[i].msg_hdr.msg_iov = &slots[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	puts("ready");
	fflush(stdout);

	long long packets = 0, lost = 0, datagrams = 0, bytes = 0;
	uint32_t expected = 0; // numbering starts at 0 with every bind
	while (!ended) {
		int n = recvmmsg(fd, messages, batch, MSG_WAITFORONE, NULL);

		for (int i = 0; i < n; i++) {
			char *data = slots[i].iov_base;
			uint32_t length = messages[i].msg_len, at = 0;

			datagrams++;
			bytes += length;
			while (at + NLMSG_HDRLEN <= length) {
				struct nlmsghdr *h = (struct nlmsghdr *)(data + at);

				if (h->nlmsg_len < NLMSG_HDRLEN || at + h->nlmsg_len > length)
					break;
				if (h->nlmsg_type == packet_type) {
					uint32_t number = sequence((char *)h, h->nlmsg_len);

					lost += (uint32_t)(number - expected);
					expected = number + 1;
					packets++;
				}
				at += NLMSG_ALIGN(h->nlmsg_len);
			}
		}
	}
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	printf("packets %lld lost %lld datagrams %lld bytes %lld user_ns %lld system_ns %lld\n", packets, lost, datagrams, bytes,
	       nanoseconds(usage.ru_utime), nanoseconds(usage.ru_stime));
	return 0;
}
