package main

// texts is everything that the report says, in one language.
type texts struct {
	title, opening string

	vmTitle, vmHead, hereHead           string
	firmware, loader, nothing           string
	guestKernel, sharedKernel           string // kernel, uptime
	initSystem, pidOne                  string // command, number of processes
	virtualDisk, stackedRoot, plainRoot string // layers; type
	slowStart, fastStart                string // ms

	kernelTitle, namespaces, sharedWithHost  string
	ids, idsValue                            string
	capabilities, capsValue, none            string
	seccompOff, seccompStrict, seccompFilter string
	cgroup, limitsValue, noCgroup, unlimited string
	processors                               string

	filesTitle, rootFS, mountedReadOnly string
	writableLayer, imageLayer           string
	written, writtenValue, notWritten   string

	netTitle, hostname, address, gateway, dns string

	conceptTitle, image, imageIs, container, containerIs string

	minutes, hours, days string
	yes, no              string
}

var english = &texts{
	title:   "Hello from inside a container",
	opening: "This program runs on your kernel as an ordinary process, and sees a world of its own. Everything below was read in here, just now.",

	vmTitle: "What a virtual machine would have booted", vmHead: "a virtual machine", hereHead: "this container",
	firmware: "firmware (BIOS, UEFI)", loader: "a boot loader", nothing: "nothing",
	guestKernel: "a kernel of its own", sharedKernel: "the host's: %s, up for %s",
	initSystem: "an init system, services", pidOne: "process 1 is %s; %d process(es) in all",
	virtualDisk: "a virtual disk of gigabytes", stackedRoot: "%d shared read-only layers and a writable one", plainRoot: "a root file system of type %s",
	slowStart: "seconds to minutes", fastStart: "the kernel made this process less than %d ms ago",

	kernelTitle: "What the kernel gave instead", namespaces: "namespaces", sharedWithHost: "shared with the host: %s",
	ids: "ids", idsValue: "uid %d, gid %d, groups %s; id map %s",
	capabilities: "capabilities", capsValue: "%d of %d: %s", none: "none",
	seccompOff: "off: every system call may be made", seccompStrict: "strict mode",
	seccompFilter: "filter mode, %d filter(s): dangerous system calls are refused",
	cgroup:        "cgroup limits", limitsValue: "cgroup v%s: memory %s, CPU %s, processes %s", noCgroup: "the control groups cannot be seen in here",
	unlimited: "unlimited", processors: "%.4g",

	filesTitle: "Layers", rootFS: "root", mountedReadOnly: ", read-only",
	writableLayer: "writable layer: this container's own", imageLayer: "layer %d of the image: read-only",
	written: "written", writtenValue: "%s, into the writable layer: the image does not change", notWritten: "nothing: %s",

	netTitle: "Network", hostname: "host name", address: "addresses", gateway: "gateway", dns: "name servers",

	conceptTitle: "Image and container",
	image:        "image", imageIs: "an immutable, read-only template: files and settings, kept in layers",
	container: "container", containerIs: "a running instance of it: processes, memory, an address, and a writable layer on top",

	minutes: "%d minutes", hours: "%d hours", days: "%d days", yes: "yes: no program in here can gain privileges", no: "no",
}

var hangul = &texts{
	title:   "컨테이너 안에서 인사드립니다",
	opening: "이 프로그램은 호스트 커널 위의 평범한 프로세스이지만, 자기만의 세계를 봅니다. 아래 내용은 모두 방금 이 안에서 읽은 것입니다.",

	vmTitle: "가상머신이라면 부팅했을 것", vmHead: "가상머신(VM)", hereHead: "이 컨테이너",
	firmware: "펌웨어(BIOS, UEFI)", loader: "부트로더", nothing: "없음",
	guestKernel: "자체 커널(Guest OS)", sharedKernel: "호스트 커널 공유: %s, 가동 시간 %s",
	initSystem: "init 시스템과 서비스", pidOne: "1번 프로세스는 %s, 전체 프로세스 %d개",
	virtualDisk: "GB 단위 가상 디스크", stackedRoot: "공유되는 읽기 전용 레이어 %d개와 쓰기 가능한 레이어 1개", plainRoot: "%s 루트 파일 시스템",
	slowStart: "수십 초 ~ 수 분", fastStart: "커널이 이 프로세스를 만든 지 %d ms도 지나지 않음",

	kernelTitle: "그 대신 커널이 준 것", namespaces: "네임스페이스", sharedWithHost: "호스트와 공유: %s",
	ids: "사용자 ID", idsValue: "uid %d, gid %d, 그룹 %s; ID 매핑 %s",
	capabilities: "권한(cap)", capsValue: "%[2]d개 중 %[1]d개: %[3]s", none: "없음",
	seccompOff: "꺼짐: 모든 시스템 콜 허용", seccompStrict: "strict 모드",
	seccompFilter: "필터 모드, 필터 %d개: 위험한 시스템 콜을 거부",
	cgroup:        "cgroup 제한", limitsValue: "cgroup v%s: 메모리 %s, CPU %s, 프로세스 %s", noCgroup: "이 안에서는 cgroup이 보이지 않음",
	unlimited: "무제한", processors: "%.4g개",

	filesTitle: "레이어", rootFS: "루트", mountedReadOnly: ", 읽기 전용",
	writableLayer: "쓰기 가능한 레이어: 이 컨테이너의 것", imageLayer: "이미지 레이어 %d: 읽기 전용",
	written: "파일 쓰기", writtenValue: "%s: 쓰기 가능한 레이어에 기록, 이미지는 불변", notWritten: "쓰지 못함: %s",

	netTitle: "네트워크", hostname: "호스트 이름", address: "주소", gateway: "게이트웨이", dns: "네임 서버",

	conceptTitle: "이미지와 컨테이너",
	image:        "이미지", imageIs: "불변의 읽기 전용 템플릿: 파일과 설정을 레이어로 보관",
	container: "컨테이너", containerIs: "이미지로부터 실행된 인스턴스: 프로세스, 메모리, 주소, 그리고 맨 위의 쓰기 가능한 레이어",

	minutes: "%d분", hours: "%d시간", days: "%d일", yes: "예: 안의 어떤 프로그램도 권한을 더 얻을 수 없음", no: "아니오",
}
