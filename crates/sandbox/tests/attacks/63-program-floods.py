# A program that prints the answer, and then without end.
# problem: program
# a: output_limit
# b: output_limit
print(sum(map(int, input().split())))
while True:
    print("y" * 4096)
