from meguri_monitoring import memory
from meguri_monitoring.app import build

if __name__ == "__main__":
    memory.give_back()
    build().serve()
